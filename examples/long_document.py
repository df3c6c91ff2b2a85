"""Read a long document, stop, and go on later: `python examples/long_document.py FILE --state reading.pt`

A layer here keeps a state of fixed size in the place of every key and value that it has seen.  So a document
of any length goes through in pieces, and what was read so far is a small file: give the same line again, and
reading goes on where it stopped (Ctrl-C, or after --pieces).  What is printed is how well each piece was
predicted.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from based_ops import models
from based_ops.errors import BasedOpsError


def main() -> None:
    parser = argparse.ArgumentParser(description="Read a document in pieces, with its state on disk.")
    parser.add_argument("document", type=Path, help="a file; its bytes are the tokens")
    parser.add_argument(
        "--model", default="based-tiny", help="a folder, or a shipped model for drawn weights"
    )
    parser.add_argument("--state", type=Path, default=Path("reading.pt"), help="where the state is kept")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a piece")
    parser.add_argument("--pieces", type=int, help="stop after so many")
    given = parser.parse_args()

    torch.manual_seed(0)
    net = models.LanguageModel(given.model) if given.model in models.shipped() else models.load(given.model)
    tokens = torch.tensor(list(given.document.read_bytes())).unsqueeze(0)

    place, nats, state = 0, 0.0, net.init_state(1)
    if given.state.exists():
        saved = torch.load(given.state)  # a state says which layer's it is; another layer's is refused
        place, nats, state = saved["place"], saved["nats"], saved["state"]
        print(f"goes on at token {place:,} of {tokens.shape[1]:,}")

    pieces = 0
    while place < tokens.shape[1] - 1 and pieces != given.pieces:
        piece = tokens[:, place : place + given.length + 1]
        with torch.no_grad():
            logits, after = net(piece[:, :-1], state, output_state=True)
        assert after is not None
        nats += cross_entropy(logits[0], piece[0, 1:], reduction="sum").item()
        state, place, pieces = after, place + piece.shape[1] - 1, pieces + 1

        torch.save({"place": place, "nats": nats, "state": state}, given.state.with_suffix(".part"))
        given.state.with_suffix(".part").replace(given.state)  # whole, whenever it is interrupted
        print(f"token {place:,}: {nats / place / math.log(2):.4f} bits a byte", flush=True)
    print(f"{given.state}: {given.state.stat().st_size:,} bytes after {place:,} tokens")


if __name__ == "__main__":
    try:
        main()
    except (BasedOpsError, OSError) as error:
        raise SystemExit(str(error)) from error
