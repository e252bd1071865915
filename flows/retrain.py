"""retrain: if the policy allows it, live another life on the project's data and labelled traffic."""

from prefect import flow

from flows.lifecycle import lifecycle
from homeostat.policy.retraining import Trigger
from homeostat.records import Deployed
from tasks.decide import decide_whether_to_retrain


@flow(name="retrain")
def retrain(project: str, trigger: Trigger = "manual") -> Deployed | None:
    """Train a challenger and promote it if it beats the champion on the same rows.

    trigger: who asks; the cooldown of project.toml holds for all but `manual`.
    """
    verdict = decide_whether_to_retrain(project, trigger)
    if verdict.kind != "retrain":
        return None
    return lifecycle(project, with_traffic=True, trigger=trigger)
