"""A denoiser of one token whose predictions are looked up by label, and a control that adds constants.

Shapes: C classes, V vocabulary size.
"""

import torch


class LabelTable(torch.nn.Module):
    """A denoiser of texts of one token, whose logits are looked up by label: `table` (C + 1, V)."""

    def __init__(self, table, tokenizer):
        super().__init__()
        logits = torch.full((len(table), len(tokenizer)), -torch.inf)
        logits[:, : table.shape[1]] = table
        self.table = torch.nn.Parameter(logits)
        self.config = type(
            "Config",
            (),
            {"vocab_size": len(tokenizer), "max_length": 8, "num_classes": len(table) - 1},
        )

    @property
    def device(self):
        return self.table.device

    def forward(
        self, input_ids, timestep=None, attention_mask=None, class_labels=None, positions=None
    ):
        logits = self.table[class_labels].unsqueeze(1).expand(-1, input_ids.shape[1], -1)
        return type("Output", (), {"logits": logits[positions]})()


class Tilt:
    """Adds constants to the log-probabilities of the first tokens."""

    def __init__(self, tilt, acts_on):
        self.tilt, self.acts_on, self.states = tilt, acts_on, []

    def __call__(self, logits, state):
        self.states.append(state)
        return torch.cat(
            [logits[:, : len(self.tilt)] + self.tilt, logits[:, len(self.tilt) :]], dim=1
        )
