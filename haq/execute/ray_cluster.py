"""A Ray cluster: somebody's, or one of our own that nobody else can reach."""

from __future__ import annotations

import logging
import os
import secrets
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from haq.values.errors import InputError

_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch between a cluster that listens on all addresses and one that listens on the loopback address alone."""
_AUTH_MODE, _AUTH_TOKEN, _AUTH_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LONGEST_REASON = 200


def import_ray() -> Any:
    """Ray, told to send no figures home.

    Raises:
        InputError: it is not installed.
    """
    # Neither figures sent home nor a hint about GPUs that nobody asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.cloudpickle
        import ray.exceptions
    except ImportError as error:
        raise InputError(
            "executor.kind = 'ray' (--workers, --ray-address) needs Ray: pip install 'haq[ray]'"
        ) from error
    return ray


class RayCluster:
    """The connection to a cluster, for as long as it is open.

    Without `address` a cluster is started on this machine. It listens on the loopback address only, and, where this
    release of Ray can, asks for a token that its own processes alone are given: whoever reaches a cluster can run code
    in it. A process that is connected already stays so.

    Args:
        ray: the module.
        address: of a cluster, or `auto`; `None`: one of our own.
        cpus: of our own.

    Raises:
        InputError: it cannot be reached or started.
    """

    def __init__(self, ray: Any, address: str | None, *, cpus: int) -> None:
        self._ray, self._before = ray, dict[str, str | None]()
        self._ours = not ray.is_initialized()
        if not self._ours:
            return
        options: dict[str, Any] = {"address": address}
        if address is None:
            # "local": beside other clusters of this machine, never in them
            options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            self._keep_private()
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            self._restore()
            reason = " ".join(str(error).split())
            where = "on this machine" if address is None else f"at --ray-address {address}"
            raise InputError(f"Ray {where} cannot be used: {reason[:_LONGEST_REASON]}") from error

    def close(self) -> None:
        """Disconnect, and end the cluster if it was started here."""
        if self._ours:
            self._ray.shutdown()
            self._restore()

    def _keep_private(self) -> None:
        self._set(_CLUSTER, "0")
        if find_spec("ray._private.authentication") is not None and _AUTH_MODE not in os.environ:
            self._set(_AUTH_MODE, "token")
            if not {_AUTH_TOKEN, _AUTH_PATH} & os.environ.keys():  # in memory only: nothing is left in the home folder
                self._set(_AUTH_TOKEN, secrets.token_hex(32))
        self._tell_ray()

    def _set(self, name: str, value: str) -> None:
        self._before[name] = os.environ.get(name)
        os.environ[name] = value

    def _restore(self) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._before:
            self._before.clear()
            self._tell_ray()

    def _tell_ray(self) -> None:
        """Ray reads the environment when it is imported, which may have been before."""
        constants = self._ray._private.ray_constants
        constants.ENABLE_RAY_CLUSTER = constants.env_bool(_CLUSTER, not constants.IS_WINDOWS_OR_OSX)
        if find_spec("ray._private.authentication") is not None:
            core = import_module("ray._raylet")
            core.Config.initialize("")
            core.AuthenticationTokenLoader.instance().reset_cache()
