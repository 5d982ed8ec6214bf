"""How every Redis key is spelled. The Lua scripts of both ends build on these names.

| key | type | what |
|---|---|---|
| run:{run} | HASH | tenant, scopes, base_model, owner (worker), epoch, claimed, done, snapshot, snapshot_seq, snapshot_at, adopted_at |
| q:{run} | ZSET | request by seq: waiting and running; of a sampling session too |
| log:{run} | LIST | state-changing requests done since the last snapshot; bodies kept until covered |
| fut:{request} | HASH | tenant, run, seq, kind, state (waiting, done, failed), content, at (submitted, microseconds), tokens, and until it has a result scopes, bytes, origin |
| pl:{request} | STRING | the job's body |
| res:{request} | STRING | response bytes, ready to send, expiring |
| owned:{worker} | SET | runs that the worker is home to |
| inbox:{worker} | LIST | wake-ups: ids of runs whose next op is ready |
| lease:{worker} | STRING PX | liveness: `connection` and the number of the one that renews it |
| vitals:{worker} | HASH PX | what it takes of its machine (worker/vitals.py) |
| drain:{worker} | STRING, a day, renewed | that it is to leave, or has left and rests |
| drained | ZSET | workers that rest, by the second in which they were last heard of |
| workers:{base} | ZSET | workers that hold the base model, by number of live runs |
| models, model:{base} | SET, HASH | base models ever announced, what their workers say of them |
| load:{scope} | HASH | requests, bytes, tokens and samples that wait or run in a scope |
| runs:{scope} | SET | the scope's live runs |
| rate:{scope} | HASH | requests and tokens that it may still submit now, and when that was counted |
| paused:{scope} | STRING, seconds | why its last request was refused |
| smp:{base} | LIST | tenants whose sampling jobs wait, in the order of their turns |
| smp:{base}:balance | HASH | tokens that each of them may still take in its turn |
| smp:{base}:of:{tenant} | LIST | a tenant's sampling jobs that wait |
| held:{worker}:{base} | SET | sampling jobs that a worker has taken and not answered |
| samplers:{base} | SET | workers that may hold some |
| beats | ZSET | sessions by the second in which they were last heard of |
| silent | ZSET | sessions released for their silence, by the second of that |
| comp:{sampling session}:{clone} | LIST | completions in order, for retrieve_futures |
| trace:{session} | LIST | finished requests: kind, request, submitted, ended (microseconds), state, tokens |
| slot:{run} | HASH | seq and folder of the weights that the run's inflight samplers use |
| seqinfo:{sequence} | STRING, a day | what was known of a recorded sequence when it was sampled |
| tok:{process} | STREAM, an hour | tokens of samples that an API process streams, a message a decode step |
| waits:{run}, waits:{request} | STRING, ten seconds | why a run, or a sample, waits: shown with queue_state |
| noted:{run} | STRING, a day | that its client was told whose rule stable_reinforce is here |
| clones:{sampling session} | STRING | how many clients have joined it |
| usage | HASH | tokens by `hour|tenant|session|kind|base model`, not yet in the database |
| usage:batches, usage:{batch} | SET, HASH | the same, on their way there |
| tidying | STRING, a minute | that the background process has been asked to tidy up |
| done, ctl | STREAM | completions; cancellations, revocations, sessions that finish, runs that rest or leave |
| step:{run} | HASH | loss, weight, drift, tokens of the passes since the run's last step |
| steps | STREAM | steps taken and runs adopted, until they are in the database |
| live:{tenant}:{second} | HASH, an hour | ten seconds' requests, failures, tokens and latencies |
| jobs:{organization} | SET | its background jobs that may not have ended |
"""

MODELS = "models"
DONE = "done"
STEPS = "steps"
DRAINED = "drained"
CTL = "ctl"
BEATS = "beats"
SILENT = "silent"
USAGE = "usage"
TIDYING = "tidying"
USAGE_BATCHES = "usage:batches"
SERVER_SCOPE = "server"
"""A scope is what limits hold for: the server, an organization, a project, a key, a run or sampler."""


def organization_scope(organization_id: str) -> str:
    return f"org:{organization_id}"


def project_scope(organization_id: str, project_id: str) -> str:
    return f"project:{organization_id}/{project_id}"


def key_scope(key_id: str) -> str:
    return f"key:{key_id}"


def run_scope(run_id: str) -> str:
    return f"run:{run_id}"


def load(scope: str) -> str:
    return f"load:{scope}"


def paused(scope: str) -> str:
    return f"paused:{scope}"


def live_runs(scope: str) -> str:
    return f"runs:{scope}"


def rate(scope: str) -> str:
    return f"rate:{scope}"


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


def vitals(worker: str) -> str:
    return f"vitals:{worker}"


def drain(worker: str) -> str:
    return f"drain:{worker}"


def workers(base_model: str) -> str:
    return f"workers:{base_model}"


def model(base_model: str) -> str:
    return f"model:{base_model}"


def sampling(base_model: str) -> str:
    return f"smp:{base_model}"


def held(worker: str, base_model: str) -> str:
    return f"held:{worker}:{base_model}"


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


def waits(name: str) -> str:
    return f"waits:{name}"


def noted(run_id: str) -> str:
    return f"noted:{run_id}"


def tokens(process: str) -> str:
    return f"tok:{process}"


def usage_batch(batch: str) -> str:
    return f"usage:{batch}"


def live(tenant: str, second: int) -> str:
    """The ten seconds that begin there."""
    return f"live:{tenant}:{second}"


def jobs(organization_id: str) -> str:
    return f"jobs:{organization_id}"
