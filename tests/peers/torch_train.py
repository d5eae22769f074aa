"""Training speed of PyTorch: a small Llama in eager float32, forward, backward and AdamW, medians after a warm-up, as one JSON object.

Run: python torch_train.py [--threads 2] [--device cpu] [--config FILE or JSON] [--steps 5] [--warmup 2]        (needs torch)

Look at `cpu_elsewhere` before using a figure: it is how many cores other processes kept busy during the timed steps. With as many
threads as cores, one busy neighbour stalls every parallel region, and a median over a few steps can be wrong by a factor of ten.

`--config` overrides fields of CONFIG, whose names are those of a config.json, and `tokens` (T) and `batch` (B).
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

# 9,750,272 parameters.
CONFIG = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 688,
    "num_hidden_layers": 11,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tokens": 256,
    "batch": 16,
}
LEARNING_RATE, BETAS, EPS, DECAY = 3e-4, (0.9, 0.95), 1e-8, 0.1


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.q_proj = nn.Linear(c["hidden_size"], self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        def split(y, heads):
            return y.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)

        def rotate(y):
            first, second = y.chunk(2, dim=-1)
            return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

        q, k = rotate(split(self.q_proj(x), self.heads)), rotate(split(self.k_proj(x), self.kv_heads))
        v = split(self.v_proj(x), self.kv_heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.gate_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.up_proj = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.down_proj = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y = self.post_attention_layernorm(x)
        return x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = nn.RMSNorm(c["hidden_size"], eps=c["rms_norm_eps"])
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        if c["tie_word_embeddings"]:
            self.lm_head.weight = self.embed_tokens.weight
        frequencies = c["rope_theta"] ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        angles = torch.outer(torch.arange(c["tokens"]), frequencies)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return self.lm_head(self.norm(x))


def read_config(text):
    if text is None:
        return dict(CONFIG)
    given = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text())
    unknown = sorted(set(given) - set(CONFIG))
    if unknown:
        raise SystemExit(f"--config has unknown fields {', '.join(unknown)}; known are {', '.join(CONFIG)}")
    return {**CONFIG, **given}


def clock(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def step(model, optimizer, ids, targets):
    """Milliseconds of the forward pass with the loss, of the backward pass, and of the optimizer with clearing the gradients."""
    t0 = clock(ids.device)
    loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    t1 = clock(ids.device)
    loss.backward()
    t2 = clock(ids.device)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    t3 = clock(ids.device)
    return [1e3 * (b - a) for a, b in ((t0, t1), (t1, t2), (t2, t3), (t0, t3))], loss.item()


def cpu_seconds():
    """CPU time of the whole machine and of this process so far, or None where there is no /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    own = os.times()
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own.user + own.system


def cpu_elsewhere(before, after, seconds):
    if before is None or after is None:
        return None
    return round(max(0.0, (after[0] - before[0]) - (after[1] - before[1])) / seconds, 2)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--config")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, at least 1")
    parser.add_argument("--fused", action="store_true", help="AdamW as one kernel, which PyTorch does not do by itself")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 0 or args.threads < 1:
        parser.error("--steps and --threads must be at least 1, --warmup at least 0")
    return args


def main():
    args = arguments()
    config = read_config(args.config)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    # TF32 off on CUDA, and no bf16 shortcuts on the CPU.
    torch.set_float32_matmul_precision("highest")
    device = torch.device(args.device)
    model = Llama(config).to(device)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() != 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True if args.fused else None)
    shape = (config["batch"], config["tokens"] + 1)

    times = []
    for i in range(args.warmup + args.steps):
        if i == args.warmup:
            start, before = time.perf_counter(), cpu_seconds()
        sequences = torch.randint(config["vocab_size"], shape).to(device)
        taken, loss = step(model, optimizer, sequences[:, :-1], sequences[:, 1:])
        times.append(taken)
    elsewhere = cpu_elsewhere(before, cpu_seconds(), time.perf_counter() - start)
    forward, backward, update, whole = (statistics.median(column) for column in zip(*times[args.warmup :]))
    result = {
        "tokens_per_s": round(config["batch"] * config["tokens"] / whole * 1e3, 1),
        "step_ms": round(whole, 2),
        "forward_ms": round(forward, 2),
        "backward_ms": round(backward, 2),
        "optimizer_ms": round(update, 2),
        "steps_ms": [round(t[3], 2) for t in times[args.warmup :]],
        "warmup": args.warmup,
        "cpu_elsewhere": elsewhere,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({platform.machine()})",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "fused_optimizer": args.fused,
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(loss, 4),
        "config": config,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
