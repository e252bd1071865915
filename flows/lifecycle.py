"""lifecycle: train, validate, compress, export, deploy, monitor."""

from prefect import flow
from prefect.runtime import flow_run

from homeostat.records import Deployed
from tasks.compress import compress
from tasks.deploy import deploy
from tasks.evaluate import evaluate
from tasks.export import export
from tasks.finish import fail, finish
from tasks.observe import observe
from tasks.prepare import prepare
from tasks.register import register
from tasks.start import start
from tasks.train import train
from tasks.validate import validate


@flow(name="lifecycle", on_failure=[fail], on_crashed=[fail], on_cancellation=[fail])
def lifecycle(project: str, with_traffic: bool = False, trigger: str = "manual", pipeline_id: str = "") -> Deployed:
    """Live one model's life: from its data to the version that answers.

    project: name of a folder under projects/. with_traffic: also learn from labelled live
    traffic. pipeline_id: go on with this pipeline behind the last stage that it finished.
    """
    run = start(project, pipeline_id or str(flow_run.id), trigger)
    data = prepare(run, with_traffic)
    validation = validate(run, data)
    trained = train(run, data, validation)
    compression = compress(run, data, trained)
    exported = export(run, data, compression)
    evaluation = evaluate(run, data, exported)
    version = register(run, data, validation, trained, compression, exported, evaluation)
    deployed = deploy(run, version, evaluation)
    finish(run, data, validation, trained, compression, exported, evaluation, version, deployed)
    observe(project, None)
    return deployed
