"""Memory over a long run."""

import json

from context import Context

# Seconds that the soak leaves for what comes after it, where it can.
AFTER_SOAK = 70.0


def soak(context: Context) -> None:
    """A short soak says how many batches the time is enough for; a long one reports memory."""
    context.made()
    most = max(25.0, min(context.sizes.soak_seconds, context.left() - AFTER_SOAK))
    command = [context.args.worker, "bench", "soak", "-m", "gpt2", "--device", context.args.device, "--json",
               "--batches"]  # fmt: skip
    first = context.call("soak-first", [*command, context.sizes.soak_first], most=most).expect()
    told = cold = json.loads(first.out)
    # Loading and cached kernels take their time again.
    seconds = min(most, context.left()) - 0.5 * first.wall - 3
    batches = min(context.sizes.soak_batches, int(0.75 * seconds * told["batches_per_s"]))
    if batches > told["batches"]:
        long = context.call("soak", [*command, batches], most=1.5 * seconds + 10)
        if long.code == 0:
            told = json.loads(long.out)
        else:
            context.report.skip(f"a soak of {batches} batches", f"failed: {long.why()}; a short one is reported")
    else:
        context.report.skip("a long soak", f"time was left for {max(0, batches)} batches; a short one is reported")
    full = f", of the {context.sizes.soak_batches} wanted" if told["batches"] < context.sizes.soak_batches else ""
    mb = lambda value: "not known" if value is None else f"{value / 1e6:,.1f}"  # noqa: E731
    second, last = told["tenths"][1], told["tenths"][-1]
    host = f"{mb(second['host_bytes'])} to {mb(last['host_bytes'])}"
    device = f"{mb(second['device_bytes'])} to {mb(last['device_bytes'])} of {mb(told['device_total_bytes'])}"
    rows = [
        ["batches of 8 prompts, 1 to 1024 tokens", f"{told['batches']}{full}"],
        ["parts; halved for want of memory", f"{told['parts']}; {told['out_of_memory']}"],
        ["seconds; of which warm-up", f"{told['seconds']:.1f}; {told['warm_up_seconds']:.1f}"],
        ["warm-up of a first soak, most shapes cold, s", f"{cold['warm_up_seconds']:.1f}"],
        ["batches/s, prompts/s without warm-up", f"{told['batches_per_s']:.1f}, {told['prompts_per_s']:.1f}"],
        ["host memory, second tenth to last, MB", host],
        ["growth of host memory, MB", mb(told["host_growth_bytes"])],
        ["device memory, second tenth to last, MB", device],
        ["growth of device memory, MB", mb(told["device_growth_bytes"])],
    ]
    context.report.table("memory", ["soak", "figure"], rows)
    context.report.data["soak"] = told
