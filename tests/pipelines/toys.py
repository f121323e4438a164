"""Pipelines of a few lines that guide in every form that there is, and can be run on any mask."""

from types import SimpleNamespace

import torch
from torch import nn

from tools.pipelines.small import SCALE, STEPS, Small, rows

WIDTH = 4


class Scheduler:
    """One that halves the noise."""

    def set_timesteps(self, steps):
        self.timesteps = list(range(steps))

    def step(self, prediction, sample):
        return (sample - 0.5 * prediction,)


class Net(nn.Module):
    """Predicts from latents and a text; the answer's form is the pipeline's."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2 * WIDTH, WIDTH)
        self.form = form

    def forward(self, latents, text):
        if self.form == "samples":
            return (list(map(self._of, latents, text)),)
        out = self._of(latents, text)
        return (out, 2 * out) if self.form == "two outputs" else answer(out)

    def _of(self, latents, text):
        return torch.tanh(self.layer(torch.cat([latents, text], dim=-1)))


def answer(out):
    return {"sample": out}


class Toy:
    """Guides as `form` says; `cond_first` is the order of its rows or calls."""

    def __init__(self, form, *, cond_first=False):
        self.form = form
        self.cond_first = cond_first
        self.net = Net(form)
        self.other = Net(form) if form == "two networks" else None
        self.scheduler = Scheduler()

    @property
    def components(self):
        parts = {"net": self.net, "other": self.other, "scheduler": self.scheduler}
        return {name: part for name, part in parts.items() if part is not None}

    @torch.no_grad()
    def __call__(self, latents, text, negative, scale=SCALE, steps=STEPS, mask=None):
        self.scheduler.set_timesteps(steps)
        for step in self.scheduler.timesteps:
            predict = self._apart if self.form.startswith("two") else self._together
            if scale == 1:
                cond = self._first(self.net(latents, text))
                uncond = cond
            else:
                cond, uncond = predict(latents, text, negative)
            if mask is not None and not mask[step]:
                uncond = cond
            latents = self.scheduler.step(uncond + scale * (cond - uncond), latents)[0]
        return SimpleNamespace(latents=latents)

    def _together(self, latents, *texts):
        texts = texts if self.cond_first else texts[::-1]
        out = self.net(torch.cat([latents] * 2), torch.cat(texts))
        halves = self._first(out).chunk(2)
        return halves if self.cond_first else halves[::-1]

    def _apart(self, latents, text, negative):
        def cond():
            return self._first(self.net(latents, text))

        def uncond():
            return self._first((self.other or self.net)(latents, negative))

        if self.cond_first:
            first = cond()
            return first, uncond()
        first = uncond()
        return cond(), first

    def _first(self, out):
        first = out["sample"] if isinstance(out, dict) else out[0]
        return torch.stack(first) if isinstance(first, list) else first


FORMS = ["one call", "samples", "two calls", "two outputs", "two networks"]


def small(form, *, cond_first=False):
    def call(images):
        names = ("latents", "text", "negative")
        return {name: rows(images, WIDTH, seed=seed) for seed, name in enumerate(names)}

    return Small(
        pipe=Toy(form, cond_first=cond_first),
        call=call,
        off=lambda images: {"scale": 1},
        another=lambda images: {"text": rows(images, WIDTH, seed=9)},
    )
