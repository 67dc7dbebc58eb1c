"""`scenelift serve` with the fake model: `python fake_serve.py` with SCENELIFT_* set."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from service import logs
from service.settings import Settings
from service.supervisor import Supervisor, environment

settings = Settings()
logs.configure(json=False)
environment(settings)
worker = (sys.executable, str(Path(__file__).with_name("fake_model.py")))
Supervisor(settings, worker=worker).run(lambda: print("started", flush=True))
