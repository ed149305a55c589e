"""What can be asked of LMDeploy's parts alone, by its own Python."""

from tests.engines.lmdeploy.engines import run_alone


def test_the_lora_kernel_computes_with_what_lies_in_a_slot_now() -> None:
    errors = run_alone("lora_kernel")
    assert errors["before"] < 2e-3 and errors["after"] < 2e-3


def test_settings_become_those_of_each_of_its_engines_and_adapters_of_experts_are_not_served() -> None:
    told = run_alone("engine_config")
    common = {
        "dtype": "bfloat16",
        "tp": 2,
        "session_len": 1024,
        "cache_max_entry_count": 0.5,
        "quant_policy": 8,
        "max_batch_size": 32,
        "enable_prefix_caching": False,
        "max_prefill_token_num": 512,
        "enable_metrics": False,
    }
    assert common.items() <= told["pytorch"].items() and common.items() <= told["turbomind"].items()
    pytorch = {"block_size": 32, "eager_mode": True, "logprobs_mode": "raw_logprobs", "adapters": {"a": "/a"}}
    assert pytorch.items() <= told["pytorch"].items()
    assert told["turbomind"]["cache_block_seq_len"] == 32
    assert "model.layers.1.mlp.experts.w2" in told["experts"]
