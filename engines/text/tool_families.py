"""The forms in which families of models write tool calls, each in a few lines: a further family is one more.

Names and arguments as the models' own documentation and chat templates have them.
"""

from dataclasses import replace

from engines.text.tool_syntax import NAME, Head, Literals, Tags, ToolFormat

# ---- JSON, with the name beside the arguments

HERMES = ToolFormat(
    name="hermes",
    known_by="<tool_call>",
    starts=("<tool_call>",),
    ends=("</tool_call>",),
    before='<tool_call>\n{"name": "',
    between='", "arguments": ',
    after="}\n</tool_call>",
    separator="\n",
    bare="{",
)
GRANITE4 = replace(HERMES, name="granite4", known_by=None)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    known_by=r'<\|python_tag\|>|"parameters": dictionary of argument name',
    starts=("<|python_tag|>", "<|python_start|>"),
    ends=("<|python_end|>",),
    before='{"name": "',
    between='", "parameters": ',
    after="}",
    bare="{",
)
MISTRAL = ToolFormat(
    name="mistral",
    known_by=r"\[TOOL_CALLS\]",
    starts=("[TOOL_CALLS]",),
    first="[TOOL_CALLS] [",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]",
    head=Head(rf"(?P<name>{NAME})\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{{)", "{"),
)
MISTRAL_NAMED = ToolFormat(
    name="mistral",
    starts=("[TOOL_CALLS]",),
    before="[TOOL_CALLS]",
    between="[ARGS]",
    separator="",
    head=MISTRAL.head,
)
GRANITE = ToolFormat(
    name="granite",
    known_by=r"<\|tool_call\|>",
    starts=("<|tool_call|>", "<tool_call>"),
    first="<|tool_call|>[",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]",
)
PHI4_MINI = ToolFormat(
    name="phi4_mini_json",
    known_by=r"<\|/tool(_call)?\|>",
    starts=("<|tool_call|>", "functools"),
    ends=("<|/tool_call|>",),
    first="<|tool_call|>[",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]<|/tool_call|>",
)
JAMBA = ToolFormat(
    name="jamba",
    known_by=r"<tool_calls>\s*\[",
    starts=("<tool_calls>",),
    ends=("</tool_calls>",),
    first="<tool_calls>[",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]</tool_calls>",
)
HUNYUAN = replace(JAMBA, name="hunyuan_a13b", known_by=None)
MINIMAX = ToolFormat(
    name="minimax",
    known_by="<tool_calls>",
    starts=("<tool_calls>",),
    ends=("</tool_calls>",),
    first="<tool_calls>\n",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator="\n",
    last="\n</tool_calls>",
)
XLAM = ToolFormat(
    name="xlam",
    starts=("<tool_call>", "[TOOL_CALLS]"),
    ends=("</tool_call>",),
    first="[",
    before='{"name": "',
    between='", "arguments": ',
    after="}",
    separator=", ",
    last="]",
    bare="[",
)

# ---- JSON arguments behind the name

DEEPSEEK_CALLS, DEEPSEEK_CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
DEEPSEEK_CALL, DEEPSEEK_CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
DEEPSEEK_SEPARATOR = "<｜tool▁sep｜>"
DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    known_by=rf"(?s){DEEPSEEK_SEPARATOR}.*```json",
    starts=(DEEPSEEK_CALLS, DEEPSEEK_CALL),
    ends=("```", DEEPSEEK_CALL_END, DEEPSEEK_CALLS_END),
    first=DEEPSEEK_CALLS,
    before=f"{DEEPSEEK_CALL}function{DEEPSEEK_SEPARATOR}",
    between="\n```json\n",
    after=f"\n```{DEEPSEEK_CALL_END}",
    separator="\n",
    last=DEEPSEEK_CALLS_END,
    head=Head(rf"function{DEEPSEEK_SEPARATOR}(?P<name>{NAME})\s*```(?:json)?\s*(?=\{{)", "{"),
    ends_reasoning=True,
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    known_by=DEEPSEEK_SEPARATOR,
    starts=(DEEPSEEK_CALLS, DEEPSEEK_CALL),
    ends=(DEEPSEEK_CALL_END, DEEPSEEK_CALLS_END),
    first=DEEPSEEK_CALLS,
    before=DEEPSEEK_CALL,
    between=DEEPSEEK_SEPARATOR,
    after=DEEPSEEK_CALL_END,
    separator="",
    last=DEEPSEEK_CALLS_END,
    head=Head(rf"(?P<name>{NAME}){DEEPSEEK_SEPARATOR}\s*(?=\{{)", "{"),
    ends_reasoning=True,
)
KIMI_K2 = ToolFormat(
    name="kimi_k2",
    known_by=r"<\|tool_call_argument_begin\|>",
    starts=("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    ends=("<|tool_call_end|>", "<|tool_calls_section_end|>"),
    first="<|tool_calls_section_begin|>",
    before="<|tool_call_begin|>functions.",
    between=":{index}<|tool_call_argument_begin|>",
    after="<|tool_call_end|>",
    separator="",
    last="<|tool_calls_section_end|>",
    head=Head(
        r"(?:functions\.)?(?P<name>[\w./-]{1,128})(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*(?=\{)",
        "{",
    ),
    call_id="functions.{name}:{index}",
    ends_reasoning=True,
)
FUNCTIONARY = ToolFormat(
    name="functionary",
    known_by=r"<function=.*</function>",
    starts=("<function=",),
    ends=("</function>",),
    before="<function=",
    between=">",
    after="</function>",
    separator="",
    head=Head(rf"(?P<name>{NAME})\s*>\s*(?=\{{)", "{"),
)
REACT = ToolFormat(
    name="react",
    starts=("Action:",),
    ends=("Observation:",),
    before="Action: ",
    between="\nAction Input: ",
    head=Head(rf"(?P<name>{NAME})\s*\n\s*Action Input:\s*(?=\{{)", "{"),
    results_follow=True,
)
GLM4 = ToolFormat(
    name="glm4",
    starts=("<|assistant|>",),
    ends=("<|observation|>",),
    before="",
    between="\n",
    separator="<|assistant|>",
    bare_names=True,
    behind_content="<|assistant|>",
    head=Head(rf"(?P<name>{NAME})[ \t]*\n\s*(?=\{{)", "{"),
    results_follow=True,
)

# ---- each argument in tags

QWEN3_CODER = ToolFormat(
    name="qwen3_coder",
    known_by=r"(?s)<function=.*<parameter=",
    starts=("<tool_call>", "<function="),
    ends=("</tool_call>",),
    before="<tool_call>\n<function=",
    between=">\n",
    after="\n</tool_call>",
    separator="\n",
    head=Head(rf"(?:<function=)?(?P<name>{NAME})\s*>", ">", "<function="),
    arguments=Tags("<parameter=", ">\n", "\n</parameter>\n", "</function>"),
)
SEED_OSS = ToolFormat(
    name="seed_oss",
    known_by="<seed:tool_call>",
    starts=("<seed:tool_call>",),
    ends=("</seed:tool_call>",),
    first="<seed:tool_call>\n",
    before="<function=",
    between=">\n",
    after="\n",
    separator="",
    last="</seed:tool_call>",
    head=Head(rf"<function=(?P<name>{NAME})\s*>", ">", "<function="),
    arguments=Tags("<parameter=", ">", "</parameter>\n", "</function>"),
)
MINIMAX_M2 = ToolFormat(
    name="minimax_m2",
    known_by="<minimax:tool_call>",
    starts=("<minimax:tool_call>",),
    ends=("</minimax:tool_call>",),
    first="<minimax:tool_call>\n",
    before='<invoke name="',
    between='">\n',
    after="\n",
    separator="",
    last="</minimax:tool_call>",
    head=Head(rf'<invoke\s+name="?(?P<name>{NAME})"?\s*>', ">", "<invoke"),
    arguments=Tags('<parameter name="', '">', "</parameter>\n", "</invoke>"),
)
DSML = "｜DSML｜"
DEEPSEEK_V32 = ToolFormat(
    name="deepseek_v32",
    known_by=r"(?i)dsml\S{0,12}\s*\+\s*'function_calls|｜DSML｜function_calls",
    starts=(f"<{DSML}function_calls>",),
    ends=(f"</{DSML}function_calls>",),
    first=f"<{DSML}function_calls>\n",
    before=f'<{DSML}invoke name="',
    between='">\n',
    after="\n",
    separator="",
    last=f"</{DSML}function_calls>",
    head=Head(rf'<{DSML}invoke\s+name="(?P<name>{NAME})"\s*>', ">", f"<{DSML}invoke"),
    arguments=Tags(
        f'<{DSML}parameter name="',
        '" string="true">',
        f"</{DSML}parameter>\n",
        f"</{DSML}invoke>",
        between_other='" string="false">',
    ),
    ends_reasoning=True,
)
DEEPSEEK_V4 = replace(
    DEEPSEEK_V32,
    name="deepseek_v4",
    known_by=r"(?i)dsml\S{0,12}\s*\+\s*'tool_calls|｜DSML｜tool_calls",
    starts=(f"<{DSML}tool_calls>",),
    ends=(f"</{DSML}tool_calls>",),
    first=f"<{DSML}tool_calls>\n",
    last=f"</{DSML}tool_calls>",
)
GLM45 = ToolFormat(
    name="glm45",
    known_by=r"<arg_key>.*</arg_key>\s*\n",
    starts=("<tool_call>",),
    before="<tool_call>",
    between="\n",
    separator="\n",
    head=Head(rf"(?P<name>{NAME})\s*(?=<)", "<"),
    arguments=Tags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n", "</tool_call>"),
)
GLM47 = ToolFormat(
    name="glm47",
    known_by="<arg_key>",
    starts=("<tool_call>",),
    before="<tool_call>",
    between="",
    separator="",
    head=GLM45.head,
    arguments=Tags("<arg_key>", "</arg_key><arg_value>", "</arg_value>", "</tool_call>"),
)

# ---- literals

PYTHON = Literals("=", ")", ('"', "'"), ", ", ("True", "False", "None"), escapes=True)
PYTHON_HEAD = Head(r"(?P<name>[A-Za-z_][\w.-]{0,127})\(", "(")
PYTHONIC = ToolFormat(
    name="pythonic",
    starts=("<|python_start|>", "<|python_tag|>"),
    ends=("<|python_end|>",),
    first="[",
    before="",
    between="(",
    after="",
    separator=", ",
    last="]",
    bare="[",
    head=PYTHON_HEAD,
    arguments=PYTHON,
)
LLAMA4_PYTHONIC = replace(PYTHONIC, name="llama4_pythonic", known_by=r"\[func_name1\(params_name1")
LFM2 = ToolFormat(
    name="lfm2",
    known_by=r"<\|tool_call_start\|>",
    starts=("<|tool_call_start|>",),
    ends=("<|tool_call_end|>",),
    first="<|tool_call_start|>[",
    before="",
    between="(",
    separator=", ",
    last="]<|tool_call_end|>",
    head=PYTHON_HEAD,
    arguments=PYTHON,
)
OLMO3 = ToolFormat(
    name="olmo3",
    known_by="<function_calls>",
    starts=("<function_calls>",),
    ends=("</function_calls>",),
    first="<function_calls>\n",
    before="",
    between="(",
    separator="\n",
    last="\n</function_calls>",
    head=PYTHON_HEAD,
    arguments=Literals("=", ")", ('"', "'"), ", ", escapes=True),
)
GEMMA4 = ToolFormat(
    name="gemma4",
    known_by=r"<\|tool_call>",
    starts=("<|tool_call>",),
    ends=("<tool_call|>", "<|tool_response>"),  # the latter is where the model stops for the result
    before="<|tool_call>call:",
    between="{",
    after="<tool_call|>",
    separator="",
    head=Head(rf"call:(?P<name>{NAME})\s*\{{", "{"),
    arguments=Literals(":", "}", ('<|"|>',), ","),
)
FUNCTIONGEMMA = ToolFormat(
    name="functiongemma",
    known_by="<start_function_call>",
    starts=("<start_function_call>",),
    ends=("<end_function_call>",),
    before="<start_function_call>call:",
    between="{",
    after="<end_function_call>",
    separator="",
    head=GEMMA4.head,
    arguments=Literals(":", "}", ("<escape>",), ",", typed=True),
)

# ---- channels

HARMONY = ToolFormat(
    name="openai",
    known_by=r"<\|channel\|>",
    starts=("<|channel|>",),
    ends=("<|start|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"),
    before="<|channel|>commentary to=functions.",
    between=" <|constrain|>json<|message|>",
    channels=True,
    one_call=True,
)

FAMILIES = (
    HARMONY,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    DEEPSEEK_V32,
    DEEPSEEK_V4,
    KIMI_K2,
    MINIMAX_M2,
    SEED_OSS,
    QWEN3_CODER,
    FUNCTIONARY,
    GLM45,
    GLM47,
    GEMMA4,
    FUNCTIONGEMMA,
    LFM2,
    LLAMA4_PYTHONIC,
    OLMO3,
    MISTRAL,
    PHI4_MINI,
    GRANITE,
    JAMBA,
    MINIMAX,
    HERMES,
    LLAMA3_JSON,
)
"""Those that chat templates tell of; the first that does is meant."""
NAMED = {form.name: form for form in (*FAMILIES, GLM4, GRANITE4, HUNYUAN, PYTHONIC, REACT, XLAM)}
