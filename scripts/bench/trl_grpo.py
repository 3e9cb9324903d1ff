#!/usr/bin/env python3
"""The peer of `baleen bench --only step`: TRL's GRPOTrainer on a model and a batch of the same shape, on one GPU.

    pip install 'torch==2.11.*' 'trl==1.16.*'
    python3 scripts/bench/trl_grpo.py --micro-batch-tokens 12288
    baleen bench smollm2-135m --dtype bf16 --only step --prompts 64 --group 8 --prompt-tokens 128 \\
        --new-tokens 256 --micro-batch-tokens 12288

Weights, gradients and AdamW's moments are bf16 here, where baleen keeps them in f32 beside a bf16 copy: that favours
TRL. With --f32-weights they are f32, and training computes in bf16 by autocast. Weights are random, prompts are fixed ids, and every completion has exactly --new-tokens tokens (an end token
can't be drawn before). Temperature 1, no truncation, no reference model (beta = 0), one optimizer step a rollout,
fused AdamW, activations kept, completions by transformers' generate(). A reward that alternates within a group gives
every sample an advantage. No file or network is used.

Prints one JSON line. `step_secs` are wall-clock seconds of each step after --warmup; `generation_secs` is sampling
and grading, `training_secs` the rest of the step. `training_tokens_per_sec` counts prompt + completion of every
sample. Peak memory is that of torch's allocator, in GiB: in use, and reserved.
"""
import argparse
import json
import os
import statistics
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402
from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

VOCAB_SIZE = 49152
SPECIAL = ["<pad>", "<bos>", "<eos>"]
GIB = 2**30


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8, help="samples of a prompt")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--micro-batch-tokens", type=int, default=12288, help="prompt + completion tokens of a backward pass")
    parser.add_argument("--f32-weights", action="store_true", help="f32 weights under bf16 autocast")
    parser.add_argument("--warmup", type=int, default=2, help="steps that don't count")
    parser.add_argument("--steps", type=int, default=3, help="steps that count")
    given = parser.parse_args()
    samples = given.prompts * given.group
    given.micro_batch = max(1, given.micro_batch_tokens // (given.prompt_tokens + given.new_tokens))
    given.micro_batch = min(given.micro_batch, samples)
    if samples % given.micro_batch != 0:
        parser.error(f"{samples} samples don't divide into micro-batches of {given.micro_batch}")
    return given


def model(dtype):
    """SmolLM2-135M's shape with random weights."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=1e5,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).to(dtype)


def tokenizer():
    """One word an id, split at blanks: a prompt of n words has n ids."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    for index in range(len(SPECIAL), VOCAB_SIZE):
        vocabulary[f"w{index}"] = index
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def prompts(given):
    def word(prompt, position):
        place = prompt * given.prompt_tokens + position
        return f"w{len(SPECIAL) + place * 7919 % (VOCAB_SIZE - len(SPECIAL))}"

    return [" ".join(word(prompt, i) for i in range(given.prompt_tokens)) for prompt in range(given.prompts)]


def now():
    torch.cuda.synchronize()
    return time.perf_counter()


class Clock(TrainerCallback):
    """Seconds of every step and, within, of its generation."""

    def __init__(self, warmup):
        self.warmup = warmup
        self.steps, self.generations = [], []
        self.begun = None

    def on_step_begin(self, args, state, control, **kwargs):
        if len(self.steps) == self.warmup:
            torch.cuda.reset_peak_memory_stats()
        self.begun = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(now() - self.begun)

    def around(self, generate):
        def timed(*args, **kwargs):
            begun = now()
            result = generate(*args, **kwargs)
            self.generations.append(now() - begun)
            return result

        return timed


def main():
    given = arguments()
    samples = given.prompts * given.group
    words = tokenizer()
    texts = prompts(given)
    lengths = {len(ids) for ids in words(text=texts)["input_ids"]}
    assert lengths == {given.prompt_tokens}, f"prompts of {lengths} ids"
    sampled = []

    def alternating(completion_ids, **kwargs):
        sampled.extend(len(ids) for ids in completion_ids)
        return [float(index % 2) for index in range(len(completion_ids))]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=given.warmup + given.steps,
            per_device_train_batch_size=given.micro_batch,
            gradient_accumulation_steps=samples // given.micro_batch,
            num_generations=given.group,
            max_completion_length=given.new_tokens,
            generation_kwargs={"min_new_tokens": given.new_tokens},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            loss_type="grpo",
            learning_rate=1e-7,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            bf16=True,
            gradient_checkpointing=False,
            shuffle_dataset=False,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            seed=0,
        )
        trainer = GRPOTrainer(
            model=model(torch.float32 if given.f32_weights else torch.bfloat16),
            reward_funcs=alternating,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in texts]),
            processing_class=words,
        )
        clock = Clock(given.warmup)
        trainer._generate_and_score_completions = clock.around(trainer._generate_and_score_completions)
        trainer.add_callback(clock)
        trainer.train()
    assert set(sampled) == {given.new_tokens}, f"completions of {sorted(set(sampled))} tokens"
    assert len(clock.steps) == len(clock.generations) == given.warmup + given.steps

    steps, generations = clock.steps[given.warmup :], clock.generations[given.warmup :]
    generation = statistics.median(generations)
    training = statistics.median(step - part for step, part in zip(steps, generations))
    completion_tokens = samples * given.new_tokens
    result = {
        "peer": f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}",
        "device": torch.cuda.get_device_name(),
        "shape": f"{given.prompts}x{given.group}x({given.prompt_tokens}+{given.new_tokens})",
        "weights": "f32" if given.f32_weights else "bf16",
        "micro_batch_samples": given.micro_batch,
        "step_secs": [round(secs, 3) for secs in steps],
        "step_secs_median": round(statistics.median(steps), 3),
        "generation_secs": round(generation, 3),
        "training_secs": round(training, 3),
        "completion_tokens_per_sec": round(completion_tokens / generation, 1),
        "training_tokens_per_sec": round(samples * (given.prompt_tokens + given.new_tokens) / training, 1),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / GIB, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
