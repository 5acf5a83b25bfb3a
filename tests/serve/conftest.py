"""The service needs the extra `serve`."""

from importlib.util import find_spec

_NEEDED = ("onnxruntime", "starlette", "uvicorn", "prometheus_client")
collect_ignore_glob = [] if all(map(find_spec, _NEEDED)) else ["test_*.py"]
