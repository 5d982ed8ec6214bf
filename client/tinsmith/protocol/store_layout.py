"""Where things stand in the object store. Names come from ids, never from user text unparsed.

Every folder is committed by its manifest, written last: a folder without one was never finished.
"""

MANIFEST = "manifest.json"
PROBE = "probe"
"""An empty object that every process writes at its start, to see whether it may."""
EXPORTS, UPLOADS = "exports", "uploads"
CHECKPOINTS, SNAPSHOTS = "checkpoints", "snapshots"


def checkpoint_prefix(checkpoint_uid: str) -> str:
    """A checkpoint's folder, by a random id of its own: overwriting a name never moves a sampler."""
    return f"{CHECKPOINTS}/{checkpoint_uid}"


def snapshot_prefix(run_id: str, epoch: int, seq_id: int) -> str:
    """A run's recovery state after `seq_id`; the epoch keeps a zombie from writing over ours."""
    return f"{run_folder(run_id)}/{epoch}-{seq_id}"


def run_folder(run_id: str) -> str:
    """Where the snapshots of a run lie."""
    return f"{SNAPSHOTS}/{run_id.replace(':', '-')}"


def tokenizer_prefix(digest: str) -> str:
    return f"tokenizers/{digest}"


def export_prefix(job_id: str) -> str:
    """What a job made for downloading; it stays for a day."""
    return f"{EXPORTS}/{job_id}"


def upload_prefix(job_id: str) -> str:
    """What came from outside and waits for its job, which deletes it."""
    return f"{UPLOADS}/{job_id}"
