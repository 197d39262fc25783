"""One step of tuning the teacher: the hearings of a batch, and what they should teach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES
from model.training.features import Whitening
from model.training.losses import blank_free_ctc, path_contrast
from model.training.lowrank import TunedTeacher
from model.training.pairs import Codes, aligned_pairs
from model.training.phones import PAUSE, Phones, padded_labels
from model.training.tuningsettings import TuningSettings
from model.training.views import View, Views
from model.training.words import Groups, LabelSampler, Word

PROTOTYPE_STEPS, PROTOTYPE_STRETCHES, PROTOTYPE_RATE = 200, 16, 3e-3


def phone_loss(scores: list[Tensor], labels: list[list[int]], temperature: float) -> Tensor:
    """Mean over stretches of blank-free CTC on their phones, a frame; stretches too short for theirs are left out.

    `scores` float32 [frames, labels] cosines of each stretch; a pause may be left out. Zero where none is long enough.
    """
    device = scores[0].device
    frames = torch.tensor([len(s) for s in scores], device=device)
    log_probability = [F.log_softmax(s.float() / temperature, -1) for s in scores]
    target, lengths = padded_labels(labels, device)
    loss = blank_free_ctc(nn.utils.rnn.pad_sequence(log_probability, batch_first=True), frames, target, lengths, PAUSE)
    finite = torch.isfinite(loss)
    each = torch.where(finite, loss / frames, torch.zeros_like(loss))
    return each.sum() / finite.sum().clamp(min=1)


class Lesson:
    """Draws the batches of tuning and works out their losses.

    `cuts` are stretches that serve beside the words and have no label. `raw` float16 [frames of the pack, 512] are the
    teacher's own features in full windows, to which running speech is held. With
    `phones` there are prototypes of phones beside the tuned teacher, which are learned too and thrown away.
    """

    def __init__(
        self, tuned: TunedTeacher, views: Views, groups: Groups, sampler: LabelSampler, cuts: list[Word],
        whitening: Whitening, raw: npt.NDArray[np.float16], phones: Phones | None, settings: TuningSettings,
    ) -> None:  # fmt: skip
        self.tuned, self.views, self.groups, self.sampler = tuned, views, groups, sampler
        self.cuts, self.raw, self.phones, self.settings = cuts, raw, phones, settings
        self.device = views.device
        self.mean, self.matrix = (torch.from_numpy(x).to(self.device) for x in (whitening.mean, whitening.matrix))
        self.taught = [word for label in groups.labels for word in groups.of[label]]
        self.share = views.pack.frames / views.pack.frames.sum()
        # Long stretches come more often: most of those with word times are a word or two.
        lengths = np.array([said.frames for said in phones.said] if phones else [1], np.float64)
        self.said_share = lengths / lengths.sum()
        self.codes = None if phones is None else self._prototypes(phones)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are learned, by name."""
        return self.tuned.trained() | ({} if self.codes is None else {"phones": self.codes.weight})

    def own(self, spans: list[tuple[int, int]]) -> Tensor:
        """The teacher's own whitened unit features of spans (at, frames) of the pack, one after another."""
        x = torch.from_numpy(np.concatenate([self.raw[at : at + frames] for at, frames in spans])).to(self.device)
        return F.normalize((x.float() - self.mean) @ self.matrix, dim=-1)

    def _prototypes(self, phones: Phones) -> Codes:
        """Directions of the phones in the teacher's own features, learned before anything else moves."""
        rng = np.random.default_rng(self.settings.seed)
        codes = Codes(F.normalize(torch.randn(phones.size, self.matrix.shape[1]), dim=-1)).to(self.device)
        optimizer = torch.optim.Adam(codes.parameters(), PROTOTYPE_RATE)
        for _ in tqdm(range(PROTOTYPE_STEPS), "prototypes", unit="step", leave=False):
            chosen = rng.choice(len(phones.said), PROTOTYPE_STRETCHES, p=self.said_share)
            said = [phones.said[int(i)] for i in chosen]
            own = [self.own([(int(self.views.pack.start[s.recording]) + s.first, s.frames)]) for s in said]
            labels = [phones.labels_of[int(i)] for i in chosen]
            loss = phone_loss([codes.scores(x) for x in own], labels, self.settings.phone_temperature)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return codes

    def _in_sentence(self, word: Word, rng: np.random.Generator) -> View:
        return self.views.in_sentence(word, int(rng.integers(0, self.settings.around_frames + 1)))

    def losses(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """One batch: `contrast` of words, `kept` (one less the cosine with the teacher's own), and `phones`."""
        s, pack = self.settings, self.views.pack
        batch: list[View] = []
        label_of: list[int] = []
        number_of: dict[str, int] = {}  # a word that meets itself may be one of a pair too
        read: list[tuple[int, list[int]]] = []  # places in the batch of words heard alone, and their phones
        of_word = {} if self.phones is None else self.phones.of_word
        for label in self.sampler.draw(s.labels, rng):
            for word in self.groups.pair(label, rng):
                alone = rng.random() < s.isolated
                if alone and label in of_word:
                    read.append((len(batch), of_word[label]))
                view = self.views.isolated(word) if alone else self._in_sentence(word, rng)
                view = replace(view, changed=alone or rng.random() < s.changed)
                batch.append(view.faster(float(rng.uniform(*s.speed))) if rng.random() < s.changed_speed else view)
                label_of.append(number_of.setdefault(label, len(number_of)))
        for number in range(s.same):
            pool = self.cuts if self.cuts and number % 2 else self.taught
            word = pool[int(rng.integers(len(pool)))]
            if word.label in of_word:
                read.append((len(batch) + 1, of_word[word.label]))
            batch += [self._in_sentence(word, rng), self.views.isolated(word)]
            label_of += [number_of.setdefault(word.label, len(number_of))] * 2
        spoken = len(batch)
        places: list[int] = []  # in the pack, of each stretch that is kept
        for recording in rng.choice(len(pack.entries), s.running, p=self.share):
            frames = min(int(rng.integers(s.running_frames // 4, s.running_frames + 1)), int(pack.frames[recording]))
            at = int(pack.start[recording]) + int(rng.integers(int(pack.frames[recording]) - frames + 1))
            batch.append(View(pack.samples[at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES], 0, frames))
            places.append(at)
        if self.phones is not None:
            for i in rng.choice(len(self.phones.said), s.stretches, p=self.said_share):
                said = self.phones.said[int(i)]
                read.append((len(batch), self.phones.labels_of[int(i)]))
                around = int(rng.integers(0, s.around_frames + 1))
                batch.append(self.views.stretch(said.recording, said.first, said.frames, around))
                places.append(int(pack.start[said.recording]) + said.first)
        heard = self.views.embed(self.tuned, batch, rng)
        anchor, positive = aligned_pairs([w.detach().cpu().numpy() for w in heard[:spoken]])
        of_frame = torch.tensor(np.repeat(label_of, [len(w) for w in heard[:spoken]]), device=self.device)
        contrast = path_contrast(
            torch.cat(heard[:spoken]), of_frame, anchor.to(self.device), positive.to(self.device), s.temperature
        )
        own = self.own([(at, len(w)) for at, w in zip(places, heard[spoken:], strict=True)])
        out = {"contrast": contrast, "kept": s.keep * (1.0 - (torch.cat(heard[spoken:]) * own).sum(-1).mean())}
        if self.codes is not None and read:
            scores = [self.codes.scores(heard[i]) for i, _ in read]
            out["phones"] = s.phones * phone_loss(scores, [labels for _, labels in read], s.phone_temperature)
        return out
