"""All that decides what tuning the teacher gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from model.training.augment import Augmentation


@dataclass(frozen=True)
class TuningSettings:
    """Counts are of one batch; weights are of the losses' sum."""

    minutes: float = 20.0
    rank: int = 32
    labels: int = 20  # each said by two speakers
    same: int = 18  # stretches that meet themselves: in their sentence, and cut out and noisy
    cuts: int = 9_000  # in all: stretches of any speech, without labels, that serve for that beside the words
    running: int = 12  # stretches that only keep the teacher's own features
    running_frames: int = 200  # at most; a quarter of it at least
    stretches: int = 14  # whose phones are known, where they are learned
    around_frames: int = 30  # at most, of the sentence on each side of a word
    isolated: float = 0.35  # share of the occurrences heard cut out and noisy
    changed: float = 0.4  # share of those in their sentence that are in a room or noise too
    speed: tuple[float, float] = (0.87, 1.15)  # of `changed_speed` of the occurrences
    changed_speed: float = 0.3
    hard: float = 0.4  # share of labels that sound like one already in the batch
    other_languages: float = 0.35  # share of labels from languages without word times
    temperature: float = 0.1
    phone_temperature: float = 0.1
    phones: float = 0.7  # weight of the phones
    keep: float = 3.0  # weight of staying near the teacher's own features
    average: float = 0.99  # of what is learned, a step
    share: float = 0.7  # of what the updates learned: what was taught holds for other words too, but less
    learning_rate: float = 5e-4
    final_rate: float = 5e-5
    warmup_steps: int = 50
    evaluate_s: float = 120.0
    patience: int = 3  # evaluations without a gain
    seed: int = 0
    augmentation: Augmentation = field(  # of the isolated hearings
        default_factory=lambda: Augmentation(noise=0.6, room=0.4, gain_db=(-12.0, 3.0))
    )

    def scaled(self, by: int) -> TuningSettings:
        """With batches so many times as large, but of words half as much: they are soon known by heart."""
        return replace(
            self, labels=max(1, by // 2) * self.labels, same=by * self.same, running=by * self.running,
            stretches=by * self.stretches,
        )  # fmt: skip
