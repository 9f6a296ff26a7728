"""The lines that go through, and the proof that all of them came."""

import random
import re

LINE_BYTES = 222
WORDS = ("GET POST /api/v1/users /static/app.js 200 404 500 timeout connected closed user session cache miss hit retry upstream "
         "checkout payment accepted refused shard replica leader follower").split()
NUMBER = re.compile(rb" seq=(\d{9}) ")


def generate(path, first, count):
    """So many lines of 222 bytes, numbered from `first`; the size."""
    rng = random.Random(first)
    # What follows the number is drawn from many tails, so that a batch compresses as logs do, not as one line repeated.
    tails = []
    for _ in range(20_000):
        head = f"request={rng.getrandbits(64):016x} user={rng.randrange(100_000)} took={rng.random() * 50:.3f}ms "
        tails.append(head + " ".join(rng.choices(WORDS, k=40)))
    with open(path, "w", encoding="ascii", newline="\n") as out:
        for number in range(first, first + count):
            front = f"2026-01-31T12:{number // 60_000 % 60:02}:{number // 1_000 % 60:02}.{number % 1_000:03}Z INFO worker-{number % 16:02} seq={number:09} "
            out.write((front + rng.choice(tails))[: LINE_BYTES - 1].ljust(LINE_BYTES - 1, ".") + "\n")
    return count * LINE_BYTES


class Seen:
    """Which of the lines came, and how often: fed with whatever bytes hold them."""

    def __init__(self, first, count):
        self.first, self.count, self.came, self.more = first, count, bytearray(count), 0
        self.rest = b""

    def feed(self, data):
        data = self.rest + data
        for found in NUMBER.finditer(data):
            at = int(found[1]) - self.first
            if not 0 <= at < self.count or self.came[at]:
                self.more += 1
            else:
                self.came[at] = 1
        # A number may lie across two pieces; a whole one that ends in the last bytes isn't counted twice.
        last = max((found.end() for found in NUMBER.finditer(data[-64:])), default=0)
        self.rest = data[-64:][max(last - 1, 0):] if len(data) >= 64 else data

    def missing(self):
        return self.count - sum(self.came)
