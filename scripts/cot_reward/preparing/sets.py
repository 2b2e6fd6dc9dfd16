"""Published preference data sets by name: where they are, and what they are for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSet:
    """A set on the Hugging Face hub. `how`: what reads its rows (a map of configs/data, a form)."""

    name: str
    repository: str
    task: str
    use: str
    how: str


SETS = {
    one.name: one
    for one in (
        DataSet("imagegen-cot", "CodeGoat24/ImageGen-CoT-Reward-5K", "image_generation",
                "cold start (stage 1)", "SFT rows, as they are"),
        DataSet("evalmuse", "CodeGoat24/EvalMuse", "image_generation", "sampling",
                "the form of UnifiedReward, as it is"),
        DataSet("evalmuse-ratings", "DY-Evalab/EvalMuse", "image_generation", "sampling",
                "evalmuse_ratings.yaml"),
        DataSet("hpd", "CodeGoat24/HPD", "image_generation", "sampling",
                "the form of UnifiedReward, as it is"),
        DataSet("oip", "CodeGoat24/OIP", "image_generation", "sampling",
                "the form of UnifiedReward, as it is"),
        DataSet("openai-4o", "Rapidata/OpenAI-4o_t2i_human_preference", "image_generation",
                "sampling", "rapidata_image.yaml"),
        DataSet("videodpo", "CodeGoat24/VideoDPO", "video_generation", "sampling",
                "videodpo.yaml"),
        DataSet("text2video", "Rapidata/text-2-video-human-preferences", "video_generation",
                "sampling", "rapidata_video.yaml"),
        DataSet("llava-critic", "lmms-lab/LLaVA-Critic-113k", "image_understanding", "sampling",
                "llavacritic.yaml"),
        DataSet("sharegptvideo", "ShareGPTVideo/train_video_and_instruction",
                "video_understanding", "sampling", "sharegptvideo.yaml"),
        DataSet("hpdv3", "MizzenAI/HPDv3", "image_generation", "sampling", "hpdv3.yaml"),
        DataSet("pickapic", "yuvalkirstain/pickapic_v2", "image_generation", "sampling",
                "pickapic.yaml"),
        DataSet("editreward", "TIGER-Lab/EditReward-Data", "image_editing", "sampling",
                "editreward.yaml"),
        DataSet("imagerewarddb", "THUDM/ImageRewardDB", "image_generation", "sampling",
                "imagerewarddb.yaml"),
    )
}  # fmt: skip


def print_sets() -> int:
    """Print a line for each set; returns the exit code."""
    for one in SETS.values():
        print(f"{one.name:<16} {one.task:<19} {one.use:<21} {one.repository:<41} {one.how}")
    print("size and licence of each are on the hub: prepare_data.py download NAME shows them")
    return 0
