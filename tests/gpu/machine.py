"""What this machine is: card, driver, cores, CUDA's libraries; and how busy the card is."""

import atexit
import ctypes
import glob
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time


def cores() -> int:
    """Cores this process may use, by affinity and by its control group."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


def memory_available() -> int:
    """Bytes, as the kernel and the control group say."""
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    try:
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        return min(available, max(0, limit - used))
    except (OSError, ValueError):
        return available


def card_index(device: str) -> str:
    """What nvidia-smi calls the card that CUDA calls `device`: it knows nothing of CUDA_VISIBLE_DEVICES."""
    index = int(device.split(":")[1]) if ":" in device else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if index < len(visible) else str(index)


def nvidia_smi(card: str, fields: str) -> "str | None":
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "-i", card, f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return None
    return done.stdout.strip() or None


def loadable(*names: str) -> "str | None":
    """The first of these libraries that the loader finds."""
    for name in names:
        try:
            ctypes.CDLL(name)
            return name
        except OSError:
            pass
    return None


def pip_roots(python: str) -> list:
    """Where an interpreter's packages are: torch brings NVIDIA's libraries and headers along."""
    code = "import json, site; print(json.dumps([*site.getsitepackages(), site.getusersitepackages()]))"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return []


def find(roots: list, *patterns: str) -> list:
    """Files under `roots`: by root, then by pattern, the newest by name first."""
    places = [f"{root}/{pattern}" for root in roots for pattern in patterns]
    return [path for place in places for path in sorted(glob.glob(place), reverse=True)]


def folder_for_now(name: str) -> str:
    """A folder that goes with this process."""
    folder = tempfile.mkdtemp(prefix=f"lenspool-{name}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def pip_headers(roots: list) -> "str | None":
    """CUDA's headers as one folder to set CUDA_PATH to. Each of NVIDIA's packages has its own, and none of those that
    torch wants has crt/, which mma.h includes; Triton has."""
    if not find(roots, "nvidia/*/include/cuda_fp16.h"):
        return None
    folder = folder_for_now("cuda")
    os.mkdir(f"{folder}/include")
    for path in find(roots, "nvidia/*/include/*", "triton/backends/nvidia/include/crt"):
        link = f"{folder}/include/{os.path.basename(path)}"
        if not os.path.lexists(link):
            os.symlink(path, link)
    return folder


def cuda_environment(python: str) -> "tuple[dict, list]":
    """Variables that let the worker find NVRTC and CUDA's headers where it would not look, in `python`'s packages at
    last; and lines that say what was found."""
    variables, lines = {}, []
    driver = loadable("libcuda.so.1", "libcuda.so")
    lines.append(f"driver library: {driver or 'none (libcuda.so.1)'}")
    toolkits = [path for path in (os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda") if path]
    roots = pip_roots(python)
    # Those the worker looks for; where there is only CUDA 13's third, it finds that by a link.
    names = ["libnvrtc.so", "libnvrtc.so.12"]
    found = loadable(*names)
    if not found:
        files = [file for name in [*names, "libnvrtc.so.13"]
                 for file in find(toolkits, f"lib64/{name}", f"targets/*/lib/{name}")]  # fmt: skip
        files += [file for name in [*names, "libnvrtc.so.13"] for file in find(roots, f"nvidia/*/lib/{name}")]
        if files:
            found, folder = files[0], os.path.dirname(files[0])
            folders = [folder]
            if found.endswith(".13"):
                folders.insert(0, folder_for_now("nvrtc"))
                os.symlink(found, f"{folders[0]}/libnvrtc.so")
            before = os.environ.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = ":".join([*folders, *([before] if before else [])])
    lines.append(f"NVRTC: {found or 'none'}")
    headers = next((path for path in [*toolkits, "/usr"] if os.path.exists(f"{path}/include/cuda_fp16.h")), None)
    headers = headers or pip_headers(roots)
    if headers and headers != os.environ.get("CUDA_PATH"):
        # The worker takes the first folder that exists, with headers or not.
        variables["CUDA_PATH"] = headers
    whole = headers and os.path.exists(f"{headers}/include/crt/mma.h")
    lines.append(f"CUDA headers: {headers or 'none'}" + ("" if whole or not headers else ", without crt/mma.h"))
    if variables:
        lines.append("set for the worker: " + ", ".join(f"{key}={value}" for key, value in variables.items()))
    return variables, lines


def describe(card: "str | None") -> list:
    """Lines that say what machine this is."""
    lines = []
    if card is not None:
        fields = "name,memory.total,driver_version,compute_cap,clocks.max.sm,power.limit"
        lines.append(f"card: {nvidia_smi(card, fields) or 'not known: nvidia-smi is missing or fails'}")
    info = pathlib.Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    lines.append(f"processor: {model}, {cores()} cores; {memory_available() / 1e9:.0f} GB of memory available")
    lines.append(f"system: {' '.join(os.uname()[i] for i in (0, 2, 4))}, Python {sys.version.split()[0]}")
    return lines


class Sampler:
    """Asks NVML, which nvidia-smi asks too, fifty times a second how busy the card was of late: the share of
    the last sixth of a second up to a second in which some kernel ran."""

    class Utilization(ctypes.Structure):
        _fields_ = [("gpu", ctypes.c_uint), ("memory", ctypes.c_uint)]

    def __init__(self, card: str):
        """Raises OSError where there is no NVML, or it does not know the card or its load."""
        self.samples: list = []
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self.handle = ctypes.c_void_p()
        self._call("nvmlInit_v2")
        if card.isdigit():
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(card)), ctypes.byref(self.handle))
        else:
            self._call("nvmlDeviceGetHandleByUUID", card.encode(), ctypes.byref(self.handle))
        self._sample()
        threading.Thread(target=self._watch, daemon=True).start()

    def _call(self, name: str, *arguments) -> None:
        code = getattr(self.nvml, name)(*arguments)
        if code != 0:
            raise OSError(f"{name} gives error {code}")

    def _sample(self) -> None:
        found = self.Utilization()
        self._call("nvmlDeviceGetUtilizationRates", self.handle, ctypes.byref(found))
        self.samples.append((time.monotonic(), found.gpu / 100))

    def _watch(self) -> None:
        try:
            while True:
                self._sample()
                time.sleep(0.02)
        except OSError:  # the card is gone; what was seen stays
            pass

    def busy(self, begin: float, end: float) -> "tuple | None":
        """The mean share of the time from `begin` to `end` in which the card computed, and of how many samples."""
        shares = [share for at, share in list(self.samples) if begin <= at <= end]
        return (sum(shares) / len(shares), len(shares)) if shares else None
