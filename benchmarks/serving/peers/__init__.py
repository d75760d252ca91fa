"""What else answers with posterior samples over HTTP: peers' own servers, each in the form its documentation shows."""
