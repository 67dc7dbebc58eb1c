"""No builder: a process that tells progress as one does, and does what its third word says.

`python fake_builder.py FOLDER NAME BEHAVIOUR`, with BEHAVIOUR of build (writes a file), slow (first waits until there
is a file `go`), refuse (says why), raise, crash (is killed while it writes), and hang. Its process id goes to `runs`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

folder, name, behaviour = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


def end_with_parent() -> None:
    os.read(0, 1)
    os._exit(1)


def tell(**told: object) -> None:
    print(json.dumps(told), flush=True)


threading.Thread(target=end_with_parent, daemon=True).start()
with (folder / "runs").open("a") as file:
    file.write(f"{os.getpid()}\n")
tell(phase="Timing", progress=0.4)
match behaviour:
    case "slow":
        while not (folder / "go").exists():
            time.sleep(0.01)
    case "refuse":
        tell(error="the builder does not take the node the_odd_one")
        os._exit(1)
    case "raise":
        os._exit(3)
    case "crash":
        (folder / f".{name}.engine.partial").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    case "hang":
        time.sleep(60)
tell(phase="Timing", progress=1.0)
(folder / f"{name}.engine").write_bytes(b"engine")
os._exit(0)
