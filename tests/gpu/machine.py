"""What this machine is: card, driver, cores, CUDA's libraries; and how busy the card is."""

import atexit
import ctypes
import glob
import os
import pathlib
import shutil
import site
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


def pip_folders(pattern: str) -> list:
    """Files of NVIDIA's Python packages, which bring libraries and headers along with torch."""
    roots = [*site.getsitepackages(), site.getusersitepackages()]
    found = {path for root in roots for path in glob.glob(f"{root}/nvidia/{pattern}", recursive=True)}
    return sorted(found, reverse=True)


def cuda_environment() -> "tuple[dict, list]":
    """Variables that let the worker find NVRTC and CUDA's headers where only Python's packages have them, and lines
    that say what was found."""
    variables, lines = {}, []
    driver = loadable("libcuda.so.1", "libcuda.so")
    lines.append(f"driver library: {driver or 'none (libcuda.so.1)'}")
    # Those the worker looks for; CUDA 13's Python package has a third, which it finds by a link.
    names = ["libnvrtc.so", "libnvrtc.so.12"]
    found = loadable(*names)
    if not found:
        files = [path for path in pip_folders("**/libnvrtc.so*") if path.rsplit("/", 1)[1] in [*names, "libnvrtc.so.13"]]
        if files:
            found, folder = files[0], files[0].rsplit("/", 1)[0]
            folders = [folder]
            if found.endswith(".13"):
                link = tempfile.mkdtemp(prefix="lenspool-nvrtc-")
                atexit.register(shutil.rmtree, link, ignore_errors=True)
                os.symlink(found, f"{link}/libnvrtc.so")
                folders.insert(0, link)
            before = os.environ.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = ":".join([*folders, *([before] if before else [])])
    lines.append(f"NVRTC: {found or 'none'}")
    places = [os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/opt/cuda"]
    headers = next((place for place in places if place and os.path.exists(f"{place}/include/cuda_fp16.h")), None)
    if not headers:
        files = pip_folders("**/include/cuda_fp16.h")
        if files:
            headers = variables["CUDA_PATH"] = files[0].rsplit("/include/", 1)[0]
    lines.append(f"CUDA headers: {headers or 'none'}")
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
