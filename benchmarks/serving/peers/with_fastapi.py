"""A peer behind FastAPI and uvicorn, as a tutorial has it.

python -m benchmarks.serving.peers.with_fastapi PREDICTOR PORT
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.serving.peers.predictors import PREDICTORS


class Rows(BaseModel):
    inputs: list[list[float]]


class Answer(BaseModel):
    mean: list[list[float]]
    variance: list[list[float]]


def main() -> None:
    """Serves until it is ended."""
    name, port = sys.argv[1:]
    torch.set_num_threads(1)
    predict_rows, app = PREDICTORS[name](), FastAPI()

    @app.post("/predict")
    def predict(rows: Rows) -> Answer:
        return Answer(**predict_rows(np.asarray(rows.inputs, dtype=np.float32)))

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False)


if __name__ == "__main__":
    main()
