"""How every Redis key is spelled. The Lua scripts of both ends build on these names.

| key | type | what |
|---|---|---|
| run:{run} | HASH | tenant, base_model, owner (worker), epoch, claimed, done, snapshot, snapshot_seq |
| q:{run} | ZSET | request by seq: waiting and running |
| log:{run} | LIST | state-changing requests done since the last snapshot; bodies kept until covered |
| fut:{request} | HASH | tenant, run, seq, kind, state (waiting, done, failed), content |
| pl:{request} | STRING | the job's body |
| res:{request} | STRING | response bytes, ready to send, expiring |
| owned:{worker} | SET | runs that the worker is home to |
| inbox:{worker} | LIST | wake-ups: ids of runs whose next op is ready |
| lease:{worker} | STRING PX | liveness |
| workers:{base} | ZSET | workers that hold the base model, by number of live runs |
| models, model:{base} | SET, HASH | base models ever announced, what their workers say of them |
| smp:{base} | STREAM + group | sampling jobs |
| comp:{sampling session}:{clone} | LIST | completions in order, for retrieve_futures |
| trace:{session} | LIST | finished requests: kind, request, submitted, ended (microseconds), state, tokens |
| slot:{run} | HASH | seq and folder of the weights that the run's inflight samplers use |
| seqinfo:{sequence} | STRING, a day | what was known of a recorded sequence when it was sampled |
| tok:{process} | STREAM, an hour | tokens of samples that an API process streams, a message a decode step |
| noted:{run} | STRING, a day | that its client was told whose rule stable_reinforce is here |
| clones:{sampling session} | STRING | how many clients have joined it |
| usage | HASH | tokens by `hour|tenant|session|kind|base model`, not yet in the database |
| usage:batches, usage:{batch} | SET, HASH | the same, on their way there |
| step:{run} | HASH | loss, weight, drift, tokens of the passes since the run's last step |
| steps | STREAM | steps taken and runs adopted, until they are in the database |
| live:{tenant}:{second} | HASH, an hour | ten seconds' requests, failures, tokens and latencies |
| jobs:{organization} | SET | its background jobs that may not have ended |
| done, ctl | STREAM | completions; cancellations and revocations |
"""

MODELS = "models"
DONE = "done"
STEPS = "steps"
CTL = "ctl"
USAGE = "usage"
USAGE_BATCHES = "usage:batches"
SAMPLER_GROUP = "samplers"


def run(run_id: str) -> str:
    return f"run:{run_id}"


def queue(run_id: str) -> str:
    return f"q:{run_id}"


def log(run_id: str) -> str:
    return f"log:{run_id}"


def future(request_id: str) -> str:
    return f"fut:{request_id}"


def payload(request_id: str) -> str:
    return f"pl:{request_id}"


def result(request_id: str) -> str:
    return f"res:{request_id}"


def owned(worker: str) -> str:
    return f"owned:{worker}"


def homeless(base_model: str) -> str:
    """Stands where a worker's name stands, for runs that no live worker took yet. Never leased."""
    return f"-{base_model}"


def inbox(worker: str) -> str:
    return f"inbox:{worker}"


def lease(worker: str) -> str:
    return f"lease:{worker}"


def workers(base_model: str) -> str:
    return f"workers:{base_model}"


def model(base_model: str) -> str:
    return f"model:{base_model}"


def sampling(base_model: str) -> str:
    return f"smp:{base_model}"


def completions(sampling_session_id: str, clone_id: int) -> str:
    return f"comp:{sampling_session_id}:{clone_id}"


def trace(session_id: str) -> str:
    return f"trace:{session_id}"


def clones(sampling_session_id: str) -> str:
    return f"clones:{sampling_session_id}"


def slot(run_id: str) -> str:
    return f"slot:{run_id}"


def sequence(sequence_id: str) -> str:
    return f"seqinfo:{sequence_id}"


def noted(run_id: str) -> str:
    return f"noted:{run_id}"


def tokens(process: str) -> str:
    return f"tok:{process}"


def usage_batch(batch: str) -> str:
    return f"usage:{batch}"


def live(tenant: str, second: int) -> str:
    """The ten seconds that begin there."""
    return f"live:{tenant}:{second}"


def heartbeat(session_id: str) -> str:
    return f"hb:{session_id}"


def jobs(organization_id: str) -> str:
    return f"jobs:{organization_id}"
