"""The one error hierarchy of fiberwalk.

    FiberwalkError
    ├── ConfigError            a build or server option that cannot be honoured
    ├── DataError              a data file or table that cannot be learned from
    ├── StoreError
    │   ├── UnknownModelError      no such model, version or alias
    │   ├── InvalidNameError       a name that may not become a folder
    │   ├── IntegrityError         a bundle whose bytes are not those that were published
    │   └── IncompatibleError      a bundle written by another schema version
    ├── InputError             a request or row that the model cannot take
    └── OverloadedError        a request that comes while too many others wait

Every error carries a stable machine-readable `code`, a sentence that says what to do, and, where it concerns
one value, the `field` it was found in, what was `expected` there and what was `got`.
"""

from __future__ import annotations

from typing import ClassVar


class FiberwalkError(Exception):
    """Base of every error that fiberwalk raises on purpose.

    Args:
        message: one sentence for a person, saying what to do.
        code: overrides the class's machine-readable code.
        field: path of the offending value, such as `inputs[3][0]` or `--target`.
        expected: what would have been accepted.
        got: what came instead, shortened.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        field: str | None = None,
        expected: str | None = None,
        got: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.field = field
        self.expected = expected
        self.got = got

    def as_dict(self) -> dict[str, str | None]:
        """The error's JSON shape: code, message, field, expected, got."""
        return {
            "code": self.code,
            "message": self.message,
            "field": self.field,
            "expected": self.expected,
            "got": self.got,
        }


class ConfigError(FiberwalkError):
    default_code = "bad_config"


class DataError(FiberwalkError):
    default_code = "bad_data"


class StoreError(FiberwalkError):
    default_code = "store_error"


class UnknownModelError(StoreError):
    default_code = "unknown_model"


class InvalidNameError(StoreError):
    default_code = "invalid_name"


class IntegrityError(StoreError):
    default_code = "damaged_bundle"


class IncompatibleError(StoreError):
    default_code = "incompatible_bundle"


class InputError(FiberwalkError):
    default_code = "bad_input"


class OverloadedError(FiberwalkError):
    default_code = "overloaded"
