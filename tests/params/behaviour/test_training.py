"""Every parameter that a training accepts changes something that can be seen; every other is refused by name."""

from typing import Any

import pytest

from engines.params.base import Params
from tests.params.behaviour.table import UNGIVEN, Row, Two, another_value, apart, together
from tests.params.behaviour.training import (
    BASE,
    Workshop,
    adalora,
    adapter,
    asked,
    base_weights,
    batches,
    changed,
    checkpoints,
    config,
    dtypes,
    evaluated,
    files,
    folder,
    kept,
    kind,
    learned,
    left,
    makes,
    merged,
    norms,
    numbers,
    optimizer,
    outcome,
    prepared,
    projected,
    rates,
    says,
    scores,
    steps,
    told,
    told_of,
    told_of_several,
)
from training.methods import method_of
from training.optimizers import OPTIMIZERS
from training.params.export import ExportParams, MergeParams
from training.params.rlhf import RlhfParams
from training.params.sft import PtParams, SftParams
from training.params.task import TASK
from training.refusals.supported import refusals
from training.tuners import TUNERS

EVALUATED = {"val_dataset": ["$rows#2"]}
THREE_STEPS = {"max_steps": 3, "save_steps": 1}
NO_LORA = {"lora_rank": UNGIVEN, "lora_dropout": UNGIVEN}
FULL = NO_LORA | {"train_type": "full"}
VERA = NO_LORA | {"train_type": "vera"}
LORA_GA = {"init_weights": "lora-ga", "max_steps": 2}
BOFT = NO_LORA | {"train_type": "boft"}
FOURIER = NO_LORA | {"train_type": "fourierft", "fourier_n_frequency": 50}
TOKENS = NO_LORA | {"train_type": "trainable_tokens"}
ADALORA = {"lora_rank": UNGIVEN, "train_type": "adalora", "max_steps": 4}
LLAMAPRO = NO_LORA | {"train_type": "llamapro", "llamapro_num_new_blocks": 2}
HOULSBY = NO_LORA | {"train_type": "adapter"}
REFT = NO_LORA | {"train_type": "reft"}
GOES_ON = NO_LORA | {"adapters": ["$trained"]}
RESUMED = NO_LORA | {"resume_from_checkpoint": "$trained", "max_steps": 3}
NF4 = {"quant_method": "bnb", "quant_bits": 4}
MOODY = "{{ mood }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
PPO = {"rlhf_type": "ppo", "reward_model": "$judge-of-tiny", "per_device_train_batch_size": 2, "response_length": 3}
DRAWN = {"dataset": ["$rows", "$fewer"], "interleave_prob": [0.5, 0.5]}
CLASSES = {"task_type": "seq_cls", "dataset": ["$classes"]}
PUSHED = {"push_to_hub": True}
BIASED = {"model": "$biased"}
TALKS = {"dataset": ["$talks"], "use_chat_template": True}


def of_every_training(task: str) -> dict[str, Row]:
    base = BASE[task]
    return {
        **together(
            base | EVALUATED,
            per_device_train_batch_size=Two(1, 2, asked("per_device_train_batch_size")),
            per_device_eval_batch_size=Two(1, 2, asked("per_device_eval_batch_size")),
            gradient_accumulation_steps=Two(1, 2, asked("gradient_accumulation_steps")),
            weight_decay=Two(0.1, 0.2, asked("weight_decay")),
            learning_rate=Two(1e-2, 1e-3, asked("learning_rate")),
            lr_scheduler_type=Two("cosine", "cosine_with_restarts", asked("lr_scheduler_type")),
            lr_scheduler_kwargs=Two({"num_cycles": 1}, {"num_cycles": 2}, asked("lr_scheduler_kwargs")),
            warmup_ratio=Two(0, 0.5, asked("warmup_steps")),
            gradient_checkpointing_kwargs=Two(
                {"use_reentrant": False}, {"use_reentrant": True}, asked("gradient_checkpointing_kwargs")
            ),
            logging_first_step=Two(True, False, asked("logging_first_step")),
            logging_steps=Two(1, 2, asked("logging_steps")),
            max_steps=Two(1, 2, asked("max_steps")),
            num_train_epochs=Two(3, 2, asked("num_train_epochs")),
            save_steps=Two(1, 2, asked("save_steps")),
            save_only_model=Two(False, True, files),
            save_on_each_node=Two(False, True, asked("save_on_each_node")),
            eval_steps=Two(1, 2, asked("eval_steps")),
            metric_for_best_model=Two("loss", "token_accuracy", asked("metric_for_best_model")),
            greater_is_better=Two(False, True, asked("greater_is_better")),
            report_to=Two(["none"], ["tensorboard"], asked("report_to")),
            ddp_find_unused_parameters=Two(UNGIVEN, True, asked("ddp_find_unused_parameters")),
            dataloader_num_workers=Two(0, 1, asked("dataloader_num_workers")),
            neftune_noise_alpha=Two(0, 5, asked("neftune_noise_alpha")),
            max_grad_norm=Two(1, 0.5, asked("max_grad_norm")),
            optim=Two("sgd", "rmsprop", asked("optim")),
            optim_args=Two({"momentum": 0.5}, {"momentum": 0.9}, asked("optim_args")),
            model_revision=Two("main", "v2", told("revision", to="AutoModelForCausalLM.from_pretrained")),
            hub_token=Two("one", "two", told("token", to="AutoModelForCausalLM.from_pretrained")),
            dataset_num_proc=Two(1, 2, told("num_proc", to="Dataset.map")),
            seed=Two(42, 1, asked("seed")),
            data_seed=Two(42, 1, asked("data_seed")),
        ),
        **together(
            base | EVALUATED,
            save_strategy=Two("steps", "epoch", asked("save_strategy")),
            eval_strategy=Two("steps", "epoch", asked("eval_strategy")),
        ),
        **together(
            base | THREE_STEPS,
            lora_rank=Two(4, 2, adapter("r")),
            lora_alpha=Two(32, 16, adapter("lora_alpha")),
            use_dora=Two(False, True, adapter("use_dora")),
            use_rslora=Two(False, True, adapter("use_rslora")),
            init_weights=Two("true", "gaussian", adapter("init_lora_weights")),
            target_modules=Two(["all-linear"], ["q_proj", "v_proj"], adapter("target_modules")),
            modules_to_save=Two([], ["lm_head"], adapter("modules_to_save")),
            lora_dtype=Two(UNGIVEN, "bfloat16", dtypes),
            lorap_lr_ratio=Two(UNGIVEN, 16, rates),
            gradient_checkpointing=Two(True, False, asked("gradient_checkpointing")),
            save_total_limit=Two(UNGIVEN, 2, checkpoints),
            torch_dtype=Two("float32", "bfloat16", asked("bf16")),
        ),
        **apart(
            base,
            optimizer=Two(UNGIVEN, "mine", learned, {"custom_register_path": ["$mine"]}),
            # what is trained
            model=Two("$tiny", "$other", steps),
            bf16=Two(False, True, asked("bf16")),
            fp16=Two(False, True, outcome),
            router_aux_loss_coef=Two(UNGIVEN, 0.1, outcome),
            attn_impl=Two("sdpa", "flash_attn", outcome),
            train_type=Two("lora", "full", files, NO_LORA),
            dry_run=Two(False, True, makes),
            target_regex=Two(UNGIVEN, ".*q_proj", adapter("target_modules")),
            ddp_backend=Two(UNGIVEN, "gloo", told_of_several("ddp_backend")),
            deepspeed=Two("zero2", "zero3", told_of_several("deepspeed")),
            fsdp=Two(UNGIVEN, "full_shard", outcome, RESUMED),
            freeze_parameters=Two([], ["model.layers.0."], changed, FULL),
            freeze_parameters_ratio=Two(0, 0.5, changed, FULL),
            trainable_parameters=Two([], ["model.embed_tokens"], changed, FULL | {"freeze_parameters_ratio": 0.5}),
            vera_rank=Two(8, 4, adapter("r"), VERA),
            vera_projection_prng_key=Two(True, False, adapter("save_projection"), VERA),
            vera_d_initial=Two(0.1, 0.2, adapter("d_initial"), VERA),
            llamapro_num_new_blocks=Two(2, 1, config("num_hidden_layers"), LLAMAPRO),
            llamapro_num_groups=Two(2, 1, learned, LLAMAPRO),
            lora_ga_batch_size=Two(2, 1, steps, LORA_GA),
            lora_ga_iters=Two(2, 1, steps, LORA_GA),
            lora_ga_max_length=Two(1024, 12, steps, LORA_GA),
            lora_ga_direction=Two("ArB2r", "ArBr", steps, LORA_GA),
            lora_ga_scale=Two("stable", "unit", steps, LORA_GA),
            lora_ga_stable_gamma=Two(16, 4, steps, LORA_GA),
            boft_block_size=Two(4, 2, adapter("boft_block_size"), BOFT),
            boft_block_num=Two(UNGIVEN, 4, adapter("boft_block_num"), BOFT),
            fourier_n_frequency=Two(50, 40, adapter("n_frequency"), FOURIER),
            fourier_scaling=Two(300, 100, adapter("scaling"), FOURIER),
            trainable_token_indices=Two([3], [4], adapter("token_indices"), TOKENS),
            adapter_length=Two(8, 4, learned, HOULSBY),
            adapter_act=Two("relu", "tanh", learned, HOULSBY),
            reft_layers=Two(UNGIVEN, [1], learned, REFT),
            reft_rank=Two(4, 2, learned, REFT),
            reft_intervention_type=Two("LoreftIntervention", "ConsreftIntervention", learned, REFT),
            reft_args=Two(UNGIVEN, {"act_fn": "gelu"}, steps, REFT),
            rope_scaling=Two("linear", "dynamic", steps, {"max_length": 256}),
            # how the base model is quantised
            quant_method=Two("bnb", "torchao", base_weights, {"quant_bits": 8}),
            quant_bits=Two(4, 8, base_weights, {"quant_method": "bnb"}),
            hqq_axis=Two(0, 1, base_weights, {"quant_method": "hqq", "quant_bits": 4}),
            bnb_4bit_compute_dtype=Two("float32", "bfloat16", base_weights, NF4),
            bnb_4bit_quant_type=Two("nf4", "fp4", base_weights, NF4),
            bnb_4bit_use_double_quant=Two(True, False, base_weights, NF4),
            bnb_4bit_quant_storage=Two("uint8", "float32", base_weights, NF4),
            # where it begins and what it leaves
            adapters=Two(UNGIVEN, ["$trained"], steps, NO_LORA),
            resume_from_checkpoint=Two(UNGIVEN, "$trained", steps, {"max_steps": 3}),
            resume_only_model=Two(False, True, steps, RESUMED),
            load_args=Two(True, False, asked("learning_rate"), GOES_ON | {"learning_rate": UNGIVEN}),
            load_data_args=Two(False, True, outcome, GOES_ON | {"dataset": UNGIVEN}),
            output_dir=Two(UNGIVEN, "here", folder),
            add_version=Two(True, False, folder),
            # data
            dataset=Two(["$rows"], ["$fewer"], prepared),
            val_dataset=Two(UNGIVEN, ["$rows#2"], prepared),
            split_dataset_ratio=Two(0, 0.5, prepared),
            streaming=Two(False, True, kind),
            interleave_prob=Two([0.1, 0.9], [0.9, 0.1], prepared, {"dataset": ["$rows", "$fewer"]}),
            stopping_strategy=Two("first_exhausted", "all_exhausted", prepared, DRAWN),
            enable_cache=Two(False, True, kept),
            download_mode=Two(
                "reuse_dataset_if_exists",
                "force_redownload",
                told("download_mode", to="datasets.load_dataset"),
                {"dataset": ["some/rows"]},
            ),
            strict=Two(False, True, prepared, {"dataset": ["$broken"]}),
            model_name=Two(["Ada"], ["Bob"], prepared, {"dataset": ["$named"], "model_author": ["us"]}),
            model_author=Two(["us"], ["them"], prepared, {"dataset": ["$named"], "model_name": ["Ada"]}),
            custom_dataset_info=Two(["$described-one"], ["$described-two"], prepared, {"dataset": ["mine"]}),
            custom_register_path=Two(["$registers-one"], ["$registers-two"], prepared, {"dataset": ["mine"]}),
            system=Two(UNGIVEN, "Be brief.", prepared, TALKS),
            use_chat_template=Two(True, False, prepared, TALKS),
            template=Two(UNGIVEN, "chatml", prepared, TALKS),
            tools_prompt=Two("react_en", "react_zh", prepared, TALKS | {"dataset": ["$tools"]}),
            chat_template=Two(UNGIVEN, MOODY, prepared, TALKS),
            chat_template_kwargs=Two({"mood": "merry"}, {"mood": "sad"}, prepared, TALKS | {"chat_template": MOODY}),
            max_length=Two(UNGIVEN, 12, prepared, {"truncation_strategy": "right"}),
            push_to_hub=Two(False, True, outcome),
            hub_model_id=Two("me/one", "me/two", told("repo_id", to="HfApi.create_repo"), PUSHED),
            hub_private_repo=Two(False, True, told("private", to="HfApi.create_repo"), PUSHED),
            check_model=Two(True, False, says, {"model": "$copied"}),
            model_type=Two("llama", "qwen2", outcome),
            truncation_strategy=Two("left", "right", prepared, {"max_length": 12}),
        ),
    }


def of_optimizers(task: str) -> dict[str, Row]:
    full = BASE[task] | FULL
    full = {name: value for name, value in full.items() if value is not UNGIVEN}
    galore = full | {"use_galore": True, "galore_rank": 4, "max_grad_norm": 0}
    lazy = galore | {"galore_quantization": True, "galore_optim_per_parameter": True}
    lisa = full | {"lisa_activated_layers": 1, "max_steps": 4}
    quantised = together(
        lazy | {"galore_proj_quant": True},
        galore_rank=Two(4, 2, optimizer("rank")),
        galore_update_proj_gap=Two(50, 10, optimizer("update_proj_gap")),
        galore_scale=Two(1, 0.5, optimizer("scale")),
        galore_proj_type=Two("reverse_std", "std", optimizer("proj_type")),
        galore_target_modules=Two(UNGIVEN, ["q_proj"], projected(embeddings=False)),
        galore_with_embedding=Two(False, True, projected(embeddings=True)),
        galore_proj_bits=Two(4, 8, optimizer("bits")),
        galore_proj_group_size=Two(256, 16, optimizer("group_size")),
        galore_cos_threshold=Two(0.4, 0.5, optimizer("cos_threshold")),
        galore_gamma_proj=Two(2, 3, optimizer("gamma_proj")),
        galore_queue_size=Two(5, 4, optimizer("queue_size")),
    )
    return {
        **quantised,
        "use_galore": Row(full, galore, optimizer("rank")),
        "galore_quantization": Row(galore, lazy, optimizer("cos_threshold")),
        "galore_optim_per_parameter": Row(galore, lazy, norms),
        "galore_proj_quant": Row(lazy, quantised["galore_rank"].one, optimizer("bits")),
        "lisa_activated_layers": Row(full, lisa, changed),
        "lisa_step_interval": Row(lisa, lisa | {"lisa_step_interval": 1}, changed),
    }


def of_plain_text(task: str) -> dict[str, Row]:
    base = BASE[task]
    return {
        **together(
            base,
            average_tokens_across_devices=Two(False, True, asked("average_tokens_across_devices")),
            lora_dropout=Two(0, 0.5, adapter("lora_dropout")),
        ),
        **apart(
            base,
            lora_bias=Two("none", "all", adapter("bias"), BIASED),
            vera_dropout=Two(0, 0.5, adapter("vera_dropout"), VERA),
            boft_dropout=Two(0, 0.1, adapter("boft_dropout"), BOFT),
            adalora_target_r=Two(8, 4, adalora("target_r"), ADALORA),
            adalora_init_r=Two(12, 10, adalora("init_r"), ADALORA),
            adalora_tinit=Two(0, 2, adalora("tinit"), ADALORA),
            adalora_tfinal=Two(0, 2, adalora("tfinal"), ADALORA),
            adalora_deltaT=Two(1, 2, adalora("deltaT"), ADALORA),
            adalora_beta1=Two(0.85, 0.5, adalora("beta1"), ADALORA),
            adalora_beta2=Two(0.85, 0.5, adalora("beta2"), ADALORA),
            adalora_orth_reg_weight=Two(0.5, 0.1, steps, ADALORA),
            loss_type=Two("nll", "dft", steps),
            packing=Two(False, True, prepared),
            sequence_parallel_size=Two(1, 2, outcome),
            tensor_model_parallel_size=Two(1, 2, outcome),
            lazy_tokenize=Two(UNGIVEN, True, kind),
            padding_side=Two("right", "left", batches, {"per_device_train_batch_size": 3}),
            acc_strategy=Two("token", "seq", evaluated, EVALUATED),
        ),
    }


def of_answers(task: str) -> dict[str, Row]:
    base = BASE[task]
    return {
        **apart(
            base,
            loss_scale=Two("default", "all", prepared),
            predict_with_generate=Two(False, True, evaluated, EVALUATED),
            metric=Two(
                UNGIVEN,
                "mine",
                evaluated,
                EVALUATED | {"predict_with_generate": True, "custom_register_path": ["$mine"]},
            ),
            num_labels=Two(3, 4, config("id2label"), CLASSES),
            problem_type=Two(
                "single_label_classification", "multi_label_classification", steps, CLASSES | {"num_labels": 2}
            ),
        ),
        "task_type": Row(base, base | CLASSES | {"num_labels": 2}, adapter("task_type")),
        **together(
            base | EVALUATED | {"predict_with_generate": True},
            max_new_tokens=Two(2, 3, told("max_new_tokens", to="GenerationMixin.generate")),
            temperature=Two(0.5, 0.7, told("temperature", to="GenerationMixin.generate")),
            top_k=Two(3, 5, told("top_k", to="GenerationMixin.generate")),
            top_p=Two(0.5, 0.9, told("top_p", to="GenerationMixin.generate")),
            repetition_penalty=Two(1.1, 1.2, told("repetition_penalty", to="GenerationMixin.generate")),
            num_beams=Two(1, 2, told("num_beams", to="GenerationMixin.generate")),
            stop_words=Two(["a"], ["b"], told("stop_strings", to="GenerationMixin.generate")),
        ),
    }


KTO = {"rlhf_type": "kto", "per_device_train_batch_size": 8}
GROUPS = BASE["rlhf"] | {
    "rlhf_type": "grpo", "reward_funcs": ["$worth"], "per_device_train_batch_size": 4, "num_generations": 2,
    "max_completion_length": 6,
}  # fmt: skip
"""A training by groups of answers."""
JUDGE = {"type": "string_check", "input": "{{sample.output_text}}", "reference": "a", "operation": "like"}

TABLES: dict[str, dict[str, Row]] = {
    "sft": of_every_training("sft") | of_optimizers("sft") | of_plain_text("sft") | of_answers("sft"),
    "pt": of_every_training("pt") | of_optimizers("pt") | of_plain_text("pt"),
    "rlhf": {
        **of_every_training("rlhf"),
        **of_optimizers("rlhf"),
        **together(
            BASE["rlhf"],
            ref_model=Two(UNGIVEN, "$other", steps),
        ),
        **apart(
            BASE["rlhf"],
            lora_bias=Two("none", "all", adapter("bias"), BIASED),
            rlhf_type=Two("dpo", "ipo", steps),
            center_rewards_coefficient=Two(0, 0.1, steps, {"rlhf_type": "rm"}),
            ref_model_revision=Two(
                "main", "v2", told("revision", to="AutoModelForCausalLM.from_pretrained"), {"ref_model": "$other"}
            ),
            loss_type=Two("sigmoid", "hinge", steps),
            precompute_ref_log_probs=Two(False, True, says),
            rpo_alpha=Two(1, 0, evaluated, EVALUATED),
            beta=Two(UNGIVEN, 0.2, steps, {"ref_model": "$other"}),  # else the first step compares equals
            label_smoothing=Two(0, 0.2, steps, {"ref_model": "$other"}),
            cpo_alpha=Two(1, 0, steps, {"rlhf_type": "simpo"}),
            simpo_gamma=Two(1, 0.5, steps, {"rlhf_type": "simpo"}),
            desirable_weight=Two(1, 0.5, steps, KTO),
            undesirable_weight=Two(1, 0.5, steps, KTO),
        ),
        **apart(
            BASE["rlhf"] | PPO,
            reward_model=Two("$judge-of-tiny", "$judge-of-other", steps),
            reward_adapters=Two(UNGIVEN, ["$judgement"], steps),
            reward_model_type=Two("llama", "qwen2", outcome),
            reward_model_revision=Two(
                "main", "v2", told("revision", to="AutoModelForSequenceClassification.from_pretrained")
            ),
            num_ppo_epochs=Two(1, 2, steps),
            whiten_rewards=Two(False, True, steps, {"per_device_train_batch_size": 8}),
            kl_coef=Two(0.05, 0.5, steps, {"ref_model": "$other"}),
            cliprange=Two(0.2, 0.001, steps, {"num_ppo_epochs": 3}),
            vf_coef=Two(0.1, 0.5, steps),
            cliprange_value=Two(0.2, 0.001, steps, {"num_ppo_epochs": 3}),
            gamma=Two(1, 0.5, steps),
            lam=Two(0.95, 0.5, steps),
            num_mini_batches=Two(1, 2, steps),
            local_rollout_forward_batch_size=Two(1, 2, batches),
            num_sample_generations=Two(0, 1, says),
            missing_eos_penalty=Two(UNGIVEN, 1, steps),
            ref_model_type=Two("llama", "qwen2", outcome, {"ref_model": "$other"}),
        ),
        **apart(
            BASE["rlhf"] | {"rlhf_type": "gkd", "teacher_model": "$other", "lmbda": 0},
            teacher_model=Two("$tiny", "$other", steps),
            teacher_model_type=Two("llama", "qwen2", outcome),
            teacher_model_revision=Two("main", "v2", told("revision", to="AutoModelForCausalLM.from_pretrained")),
            lmbda=Two(0, 1, steps),
            seq_kd=Two(False, True, steps),
            temperature=Two(0.5, 5, steps, {"lmbda": 1}),
            response_length=Two(2, 3, steps, {"lmbda": 1}),
        ),
        **apart(
            GROUPS,
            num_generations=Two(2, 4, numbers),
            max_completion_length=Two(6, 4, numbers),
            top_k=Two(UNGIVEN, 1, numbers),
            top_p=Two(UNGIVEN, 0.1, numbers),
            repetition_penalty=Two(UNGIVEN, 5.0, numbers),
            num_iterations=Two(1, 2, numbers, {"max_steps": 2}),
            steps_per_generation=Two(1, 2, numbers),
            epsilon=Two(0.2, 1e-4, numbers, {"max_steps": 2, "num_iterations": 2}),
            epsilon_high=Two(0.2, 1e-4, numbers, {"max_steps": 2, "num_iterations": 2}),
            delta=Two(UNGIVEN, 1.0001, numbers, {"max_steps": 2, "num_iterations": 2}),
            scale_rewards=Two("group", "none", numbers),
            overlong_filter=Two(False, True, numbers),
            normalize_advantages=Two(False, True, numbers, {"rlhf_type": "rloo"}),
            reward_funcs=Two(["$worth"], ["soft_overlong"], numbers),
            grader=Two(UNGIVEN, JUDGE, numbers),
            response_format=Two(UNGIVEN, {"type": "json_object"}, numbers),
            num_generations_eval=Two(1, 2, scores, EVALUATED),
            reward_weights=Two([1], [2], numbers),
            remove_unused_columns=Two(False, True, numbers),
            log_completions=Two(False, True, left),
            rollout_device=Two(UNGIVEN, "cpu", told_of),
            rollout_max_num_seqs=Two(256, 2, told("max_num_seqs", to="PtConfig.__init__")),
        ),
    },
    "merge": apart(
        {"model": "$tiny", "adapters": ["$trained"]},
        model=Two(UNGIVEN, "$other", learned),
        model_revision=Two("main", "v2", told("revision", to="AutoModelForCausalLM.from_pretrained")),
        hub_token=Two("one", "two", told("token", to="AutoModelForCausalLM.from_pretrained")),
        torch_dtype=Two("float32", "bfloat16", dtypes),
        adapters=Two(["$trained"], ["$taught"], learned),
        max_shard_size=Two("5GB", "20KB", files),
        output_dir=Two(UNGIVEN, "here", merged),
        push_to_hub=Two(False, True, outcome),
        hub_model_id=Two("me/one", "me/two", told("repo_id", to="HfApi.create_repo"), PUSHED),
        hub_private_repo=Two(False, True, told("private", to="HfApi.create_repo"), PUSHED),
        quant_method=Two("bnb", "torchao", learned, {"quant_bits": 8}),
        quant_bits=Two(4, 8, learned, {"quant_method": "bnb"}),
        hqq_axis=Two(0, 1, learned, {"quant_method": "hqq", "quant_bits": 4}),
        bnb_4bit_quant_type=Two("nf4", "fp4", learned, NF4),
        bnb_4bit_use_double_quant=Two(True, False, learned, NF4),
    ),
    "export": {
        **apart(
            {"model": "$tiny", "adapters": ["$trained"], "merge_lora": True},
            model=Two(UNGIVEN, "$other", learned),
            model_revision=Two("main", "v2", told("revision", to="AutoModelForCausalLM.from_pretrained")),
            hub_token=Two("one", "two", told("token", to="AutoModelForCausalLM.from_pretrained")),
            torch_dtype=Two("float32", "bfloat16", dtypes),
            adapters=Two(["$trained"], ["$taught"], learned),
            merge_lora=Two(True, False, files, {"to_gguf": "f32"}),
            max_shard_size=Two("5GB", "20KB", files),
            output_dir=Two(UNGIVEN, "here", merged),
            push_to_hub=Two(False, True, outcome),
            hub_model_id=Two("me/one", "me/two", told("repo_id", to="HfApi.create_repo"), PUSHED),
            hub_private_repo=Two(False, True, told("private", to="HfApi.create_repo"), PUSHED),
            to_gguf=Two(UNGIVEN, "f16", files),
            to_ollama=Two(False, True, files),
            to_peft_format=Two(False, True, merged, PUSHED | {"merge_lora": False}),
        ),
        **apart(
            {"model": "$tiny", "quant_method": "gptq", "quant_bits": 4, "group_size": 16, "dataset": ["$rows"]},
            quant_method=Two("gptq", "awq", learned),
            quant_bits=Two(4, 8, learned),
            group_size=Two(16, -1, learned),
            quant_n_samples=Two(128, 1, learned),
            quant_batch_size=Two(1, 2, batches),
            max_length=Two(2048, 12, batches),
            dataset=Two(["$rows"], ["$fewer"], learned),
            data_seed=Two(42, 43, learned, {"quant_n_samples": 2}),
            strict=Two(False, True, outcome, {"dataset": ["$broken"]}),
        ),
        **apart(
            {"model": "$tiny"} | NF4,
            bnb_4bit_quant_type=Two("nf4", "fp4", learned),
            bnb_4bit_use_double_quant=Two(True, False, learned),
            bnb_4bit_compute_dtype=Two("float32", "bfloat16", config("quantization_config")),
            bnb_4bit_quant_storage=Two("uint8", "float32", config("quantization_config")),
        ),
    },
}
"""Task -> its parameters."""

PARAMS: dict[str, type[Params]] = {
    "sft": SftParams,
    "pt": PtParams,
    "rlhf": RlhfParams,
    "merge": MergeParams,
    "export": ExportParams,
}
NEEDED: dict[str, dict[str, Any]] = {
    "sft": {"model": "m"}, "pt": {"model": "m"}, "rlhf": {"model": "m", "rlhf_type": "dpo"},
    "merge": {"adapters": ["a"]}, "export": {"adapters": ["a"], "merge_lora": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture(autouse=True)
def hqq_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.checkpoint.quantization.find_spec", lambda package: package)


READ_WHATEVER_IS_LEARNED = frozenset[str]().union(
    *(tuner.reads for tuner in TUNERS.values()), *(optimizer.reads for optimizer in OPTIMIZERS)
)
"""What a tuner or an optimizer reads, it reads beside any method: tried for sft alone."""
TRIED = [
    (task, name)
    for task, table in TABLES.items()
    for name in table
    if task not in ("pt", "rlhf") or name not in READ_WHATEVER_IS_LEARNED
]


@pytest.mark.parametrize(("task", "name"), TRIED)
def test_an_accepted_parameter_changes_what_is_seen(workshop: Workshop, task: str, name: str) -> None:
    row = TABLES[task][name]
    one, two = workshop.trial(task, row.one), workshop.trial(task, row.two)

    assert refusals(one.task) == refusals(two.task) == []
    assert row.seen(one) != row.seen(two)


@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("sft", {}),
        ("sft", {"acc_strategy": "seq"}),
        ("sft", {"predict_with_generate": True}),
        ("sft", CLASSES | {"num_labels": 2, "val_dataset": ["$classes#2"]}),
        ("sft", CLASSES | {"num_labels": 1, "val_dataset": ["$classes#2"], "metric_for_best_model": "mse"}),
        ("pt", {}),
        ("rlhf", {}),
        ("rlhf", {"rlhf_type": "rm"}),
        ("rlhf", {"metric_for_best_model": "eval_rewards/margins"}),
        ("rlhf", KTO),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_told_by_what_evaluations_report(
    workshop: Workshop, task: str, given: dict[str, Any]
) -> None:
    trial = workshop.trial(task, BASE[task] | EVALUATED | given)

    assert {"loss", *method_of(trial.params).metrics(trial.params)} == set(evaluated(trial))


@pytest.mark.parametrize("task", ["sft", "pt", "rlhf"])
def test_what_is_seen_differs_by_nothing_but_the_parameters(workshop: Workshop, task: str) -> None:
    """Else every row above would hold whatever a parameter did."""
    given = BASE[task] | EVALUATED
    one, two = (workshop.trial(task, given | {"output_dir": name}) for name in ("one", "two"))  # two runs

    for seen in (steps, learned, batches, outcome, evaluated, files, checkpoints, dtypes, prepared, kind):
        assert seen(one) == seen(two), seen.__name__


@pytest.mark.parametrize(
    ("task", "name"),
    [(task, name) for task, params in PARAMS.items() for name in params.model_fields if name not in TABLES[task]],
)
def test_every_other_parameter_is_refused_by_name(task: str, name: str) -> None:
    try:
        other = another_value(PARAMS[task], name, NEEDED[task].get(name))
    except LookupError:
        return  # its type takes nothing but the default
    found = refusals(TASK.validate_python({"task": task, "params": NEEDED[task] | {name: other}}))

    assert name in dict(found)
