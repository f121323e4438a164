"""Pipelines that have nothing to guide by, or no guidance by it."""

from tools.pipelines.small import WITHOUT_HALVES

WITHOUT_HALVES.update(
    dict.fromkeys(
        (
            "AudioDiffusionPipeline",
            "DanceDiffusionPipeline",
            "DDIMPipeline",
            "DDPMPipeline",
            "KarrasVePipeline",
            "LDMPipeline",
            "PNDMPipeline",
            "RePaintPipeline",
            "ScoreSdeVePipeline",
        ),
        "no guidance: it takes no prompt",
    )
)
WITHOUT_HALVES.update(
    dict.fromkeys(
        ("MarigoldDepthPipeline", "MarigoldIntrinsicsPipeline", "MarigoldNormalsPipeline"),
        "no guidance: the picture is the only condition, and the prompt is empty",
    )
)
WITHOUT_HALVES["ConsistencyModelPipeline"] = "no guidance: a class is only a condition"
WITHOUT_HALVES["LDMSuperResolutionPipeline"] = "no guidance: the picture is the only condition"
WITHOUT_HALVES["SpectrogramDiffusionPipeline"] = "no guidance: notes are the only condition"
