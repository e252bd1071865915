"""MLflow's own clients against a server of one model, `diabetes`: `python scoring.py PORT`. Prints `ok` at the end."""

import sys

import numpy as np
import pandas as pd
import pytest
import requests
from mlflow.deployments import get_deploy_client
from mlflow.pyfunc.scoring_server.client import ScoringServerClient

COLUMNS = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
FRAME = pd.DataFrame([[59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.9, 87], [48, 1, 21.6, 87, 183, 103.2, 70, 3, 3.9, 69]])
FRAME.columns = COLUMNS
ANSWERS = [[130.05], [125.216667]]
"""Mean of age, bmi and bp, plus sex, plus the mean of s1 to s6."""


def same(found: object) -> None:
    np.testing.assert_allclose(np.asarray(found, float), ANSWERS, rtol=1e-5)


def score(client: ScoringServerClient) -> None:
    client.wait_server_ready(timeout=10)
    assert client.get_version()
    answer = client.invoke(FRAME)
    same(answer.get_predictions("ndarray"))
    same(answer.get_predictions())  # as a frame
    same(client.invoke(FRAME.assign(note="passed over")[["note", *reversed(COLUMNS)]])["predictions"])
    same(client.invoke(FRAME.to_dict(orient="records"))["predictions"])
    one = client.invoke(FRAME[:1], params={"id": "visit-19", "entity_id": "patient-4"})
    np.testing.assert_allclose(one["predictions"], ANSWERS[:1], rtol=1e-5)
    with pytest.raises(Exception, match=r"error code 400.*BAD_REQUEST.*no column bmi"):
        client.invoke(FRAME.drop(columns="bmi"))


def deploy(url: str) -> None:
    client = get_deploy_client(url)
    same(client.predict(endpoint="diabetes", inputs={"dataframe_split": FRAME.to_dict(orient="split")})["predictions"])
    same(client.predict(endpoint="diabetes", inputs={"inputs": FRAME.to_dict(orient="list")})["predictions"])
    with pytest.raises(requests.HTTPError, match="404") as caught:
        client.predict(endpoint="nobody", inputs={"instances": [[1]]})
    assert caught.value.response.json()["error_code"] == "RESOURCE_DOES_NOT_EXIST"


score(ScoringServerClient("127.0.0.1", sys.argv[1]))
deploy(f"http://127.0.0.1:{sys.argv[1]}")
sys.stdout.write("ok\n")
