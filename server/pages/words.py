"""What a page says, in each of its languages. Descriptions of parameters are in English in both."""

# ruff: noqa: RUF001  # Chinese has commas of its own

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Words:
    """Labels and sentences of a page."""

    chat: str
    train: str
    jobs: str
    key: str
    key_help: str
    model: str
    model_help: str
    settings: str
    system: str
    system_help: str
    temperature: str
    max_tokens: str
    left_to_server: str
    thinking: str
    cut_short: str
    no_model: str
    task: str
    data: str
    upload: str
    uploaded: str
    on_the_server: str
    parameters: str
    more: str
    more_help: str
    value: str
    set: str
    default: str
    request: str
    request_help: str
    command: str
    dry_run: str
    dry_run_help: str
    start: str
    started: str
    job: str
    pause: str
    resume: str
    cancel: str
    retry: str
    talk: str
    curve: str
    log: str
    files: str
    no_job: str
    nothing_made: str


ENGLISH = Words(
    chat="Chat",
    train="Train",
    jobs="Jobs",
    key="API key",
    key_help="A key of the server. It is sent to the server, and kept nowhere.",
    model="Model",
    model_help="The base model, its adapters, and what has been trained since.",
    settings="Settings",
    system="System prompt",
    system_help="What the model is told before the conversation.",
    temperature="Temperature",
    max_tokens="Most tokens of an answer",
    left_to_server="Empty: the server decides.",
    thinking="Reasoning",
    cut_short="The answer ended at the most tokens.",
    no_model="Choose a model first.",
    task="Task",
    data="Data",
    upload="Upload a file of JSON Lines",
    uploaded="Uploaded as {file}.",
    on_the_server="Files on the server",
    parameters="Parameters",
    more="All parameters",
    more_help="Type to search names and descriptions.",
    value="Value",
    set="Set",
    default="default",
    request="Request",
    request_help="What is sent to /v1/jobs. It can be edited.",
    command="The same on the command line",
    dry_run="Dry run",
    dry_run_help="Checks data and parameters, and estimates the memory; trains nothing.",
    start="Start",
    started="Created the job {job}.",
    job="Job",
    pause="Pause",
    resume="Resume",
    cancel="Cancel",
    retry="Retry",
    talk="Chat with the result",
    curve="Curves",
    log="End of the log",
    files="Files made",
    no_job="Choose a job first.",
    nothing_made="This job has put no model into service.",
)

CHINESE = Words(
    chat="对话",
    train="训练",
    jobs="任务",
    key="API 密钥",
    key_help="服务器的密钥。只发送给服务器，不会保存。",
    model="模型",
    model_help="基础模型、它的适配器，以及之后训练出的模型。",
    settings="设置",
    system="系统提示词",
    system_help="对话开始之前告诉模型的内容。",
    temperature="温度",
    max_tokens="回答的最大 token 数",
    left_to_server="留空则由服务器决定。",
    thinking="推理过程",
    cut_short="回答已达到最大 token 数。",
    no_model="请先选择模型。",
    task="任务类型",
    data="数据",
    upload="上传 JSON Lines 文件",
    uploaded="已上传为 {file}。",
    on_the_server="服务器上的文件",
    parameters="参数",
    more="所有参数",
    more_help="输入文字以搜索名称和说明。",
    value="值",
    set="设置",
    default="默认值",
    request="请求",
    request_help="发送到 /v1/jobs 的内容，可以直接编辑。",
    command="等价的命令行",
    dry_run="试运行",
    dry_run_help="检查数据和参数，并估计显存或内存；不进行训练。",
    start="开始",
    started="已创建任务 {job}。",
    job="任务",
    pause="暂停",
    resume="继续",
    cancel="取消",
    retry="重试",
    talk="与结果对话",
    curve="曲线",
    log="日志末尾",
    files="生成的文件",
    no_job="请先选择任务。",
    nothing_made="该任务没有上线任何模型。",
)

BY_LANGUAGE: dict[Literal["en", "zh"], Words] = {"en": ENGLISH, "zh": CHINESE}
