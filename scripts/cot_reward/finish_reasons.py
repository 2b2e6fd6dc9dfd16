"""Why a server says that a text ended: the words of many servers, and their three meanings."""

from typing import Literal

Ending = Literal["finished", "truncated", "other"]

# In lower case. Published rows have no word (""); it counts as finished.
_FINISHED = {
    "",
    "stop",  # OpenAI, vLLM, SGLang, llama.cpp, Ollama, LMDeploy, Mistral, Gemini
    "eos",  # Together, llama.cpp
    "eos_token",  # TGI
    "stop_sequence",  # TGI, Anthropic, Bedrock, Cohere
    "end_turn",  # Anthropic, Bedrock
    "end_id",  # TensorRT-LLM
    "stop_words",  # TensorRT-LLM
    "complete",  # Cohere
    "completed",  # OpenAI's responses
    "finish",  # Bedrock
}
_TRUNCATED = {
    "length",  # OpenAI, vLLM, SGLang, TGI, llama.cpp, Ollama, LMDeploy, TensorRT-LLM, Bedrock
    "max_tokens",  # Anthropic, Gemini, Cohere, Bedrock
    "max_length",
    "max_new_tokens",
    "max_output_tokens",  # OpenAI's responses
    "model_length",  # Mistral
    "model_context_window_exceeded",  # Anthropic
    "limit",  # llama.cpp
}
# How Gemini's words begin in some of its interfaces.
_PREFIX = "finish_reason_"


def ending(reason: str) -> Ending:
    """What a finish reason means. "other": an abort, a filter, an unknown word, ..."""
    word = reason.strip().lower().replace("-", "_").removeprefix(_PREFIX)
    if word in _FINISHED:
        return "finished"
    return "truncated" if word in _TRUNCATED else "other"
