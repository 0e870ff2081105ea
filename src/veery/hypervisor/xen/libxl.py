"""Functions of libxl for which xl of 4.17 has no verb: let a suspended domain run on where it is; stop tracking the
pages that a running one writes.

    python -m veery.hypervisor.xen.libxl resume DOMID
    python -m veery.hypervisor.xen.libxl calm DOMID

A process of its own, so that nothing in these libraries can harm the daemon. It does what xl does at the end of a
migration that failed: libxl_domain_resume(ctx, domid, 1, NULL) (tools/xl/xl_migrate.c, failed_resume), which refuses a
domain that is not suspended (libxenctrl, xc_domain_resume_cooperative). An xl that was killed has also left the domain
in log-dirty mode, which slows it: `calm` ends that."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_VERSION = Path("/sys/hypervisor/version")
_WARN = 7  # xentoollog.h, XTL_WARN
_OFF = 0  # domctl.h, XEN_DOMCTL_SHADOW_OP_OFF


def resume(domid: int) -> int:
    """Return libxl's result: 0, or below for an error."""
    light = ctypes.CDLL(f"libxenlight.so.{_version()}")
    said = ctypes.CDLL("libxentoollog.so.1")
    logger = said.xtl_createlogger_stdiostream
    logger.restype = ctypes.c_void_p
    logger.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint]
    stderr = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
    context = ctypes.c_void_p()
    light.libxl_ctx_alloc.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
    code = int(light.libxl_ctx_alloc(ctypes.byref(context), 0, 0, logger(stderr, _WARN, 0)))
    if code:
        return code
    light.libxl_domain_resume.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_void_p]
    code = int(light.libxl_domain_resume(context, domid, 1, None))
    calm(domid)
    return code


def calm(domid: int) -> None:
    """End log-dirty mode. Where it is not on, the hypervisor refuses and nothing happens."""
    control = ctypes.CDLL(f"libxenctrl.so.{_version()}")
    control.xc_interface_open.restype = ctypes.c_void_p
    control.xc_interface_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
    control.xc_interface_close.argtypes = [ctypes.c_void_p]
    handle = control.xc_interface_open(None, None, 0)
    if handle:
        control.xc_shadow_control.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint, *[ctypes.c_void_p] * 6]
        control.xc_shadow_control(handle, domid, _OFF, *[None] * 6)  # 4 to 8 parameters, by version: all are 0
        control.xc_interface_close(handle)


def _version() -> str:
    return ".".join((_VERSION / part).read_text().strip() for part in ("major", "minor"))


def main(words: list[str]) -> int:
    """Return 0 when the domain runs on."""
    verb, domid = words
    if verb == "calm":
        calm(int(domid))
        return 0
    if verb != "resume":
        return 2
    code = resume(int(domid))
    if code:
        sys.stderr.write(f"libxl_domain_resume: {code}\n")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
