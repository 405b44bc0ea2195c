"""A plain loop of Hugging Face transformers: eager attention, `output_attentions`, every pattern brought to the host.
Nothing is written. Prints JSON: seconds of loading, of the loop, prompts.

eager.py CHECKPOINT PROMPTS [--batch-size N] [--n N] [--device cuda]
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
parser.add_argument("checkpoint")
parser.add_argument("prompts")
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--n", type=int, default=64)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

begin = time.perf_counter()
tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
model = AutoModelForCausalLM.from_pretrained(args.checkpoint, attn_implementation="eager", torch_dtype=torch.float32)
model = model.eval().to(args.device)
with open(args.prompts, encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file][: args.n]
prompts = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
loaded = time.perf_counter()


def batch(chosen: list) -> int:
    """Patterns of one batch, padded on the right, on the host; their bytes."""
    longest = max(map(len, chosen))
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in chosen], device=args.device)
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in chosen], device=args.device)
    attentions = model(ids, attention_mask=mask, output_attentions=True, use_cache=False).attentions
    return sum(layer.cpu().numpy().nbytes for layer in attentions)


with torch.inference_mode():
    batch(prompts[: args.batch_size])
    start = time.perf_counter()
    moved = sum(batch(prompts[at : at + args.batch_size]) for at in range(0, len(prompts), args.batch_size))
    loop = time.perf_counter() - start
print(json.dumps({"load": loaded - begin, "loop": loop, "prompts": len(prompts), "bytes": moved}))
