"""Who holds which KV cache block, and which blocks can be found again by their content."""

import hashlib
from collections import OrderedDict

import numpy as np

from inference.engine.sequence import Sequence


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens; block 0 is for padding and is never given out.

    A full block is known by the digest of its tokens chained with its parent's digest: sha256, so
    that equal digests mean equal content and no token comparison is needed. A freed block keeps
    its content and stays findable until it is given out again, least recently used first.
    """

    def __init__(self, num_blocks: int, block_size: int, root: bytes = b"") -> None:
        self.num_blocks, self.block_size, self._root = num_blocks, block_size, root
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._ref_counts = [0] * num_blocks
        self._digests: dict[int, bytes] = {}
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the blocks that sequences hold, 0 to 1."""
        return 1 - self.num_free / max(self.num_blocks - 1, 1)

    def match_prefix(self, seq: Sequence) -> list[int]:
        """The cached blocks at the beginning of `seq`; at least one token is left to compute."""
        num_full = (len(seq.token_ids) - 1) // self.block_size
        self._extend_hashes(seq, num_full)
        blocks = []
        for digest in seq.block_hashes[:num_full]:
            if (block := self._by_digest.get(digest)) is None:
                break
            blocks.append(block)
        return blocks

    def num_missing(self, seq: Sequence, num_tokens: int) -> int:
        """How many more blocks `seq` needs to hold `num_tokens` tokens."""
        return max(-(-num_tokens // self.block_size) - len(seq.block_table), 0)

    def share(self, seq: Sequence, blocks: list[int]) -> None:
        """Give `seq` a reference to each of the cached `blocks`."""
        for block in blocks:
            self._free.pop(block, None)
            self._ref_counts[block] += 1
        seq.block_table += blocks

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for `num_tokens` tokens; False, and nothing done, if there is too little."""
        missing = self.num_missing(seq, num_tokens)
        if missing > self.num_free:
            return False
        seq.block_table += [self._take() for _ in range(missing)]
        return True

    def free(self, seq: Sequence) -> None:
        """Give back what `seq` holds. Its last block is reused first, its prefix last."""
        for block in reversed(seq.block_table):
            self._ref_counts[block] -= 1
            if not self._ref_counts[block]:
                self._free[block] = None
        seq.block_table = []

    def cache_full_blocks(self, seq: Sequence, num_before: int) -> None:
        """Make findable the blocks that became full since `num_before` tokens were computed."""
        first, last = (n // self.block_size for n in (num_before, seq.num_computed_tokens))
        self._extend_hashes(seq, last)
        for index in range(first, last):
            digest, block = seq.block_hashes[index], seq.block_table[index]
            if digest not in self._by_digest:  # else a twin holds it: tables are append-only
                self._by_digest[digest], self._digests[block] = block, digest

    def forget(self, seq: Sequence) -> None:
        """Let nobody find the blocks of `seq` any more: what is in them may be wrong."""
        for block in seq.block_table:
            self._unhash(block)

    def _take(self) -> int:
        block, _ = self._free.popitem(last=False)
        self._unhash(block)
        self._ref_counts[block] = 1
        return block

    def _unhash(self, block: int) -> None:
        if (digest := self._digests.pop(block, None)) is not None:
            del self._by_digest[digest]

    def _extend_hashes(self, seq: Sequence, num_blocks: int) -> None:
        hashes, size = seq.block_hashes, self.block_size
        for index in range(len(hashes), num_blocks):
            parent = hashes[-1] if hashes else self._root_of(seq)
            tokens = np.asarray(seq.token_ids[index * size : (index + 1) * size], dtype=np.uint32)
            hashes.append(hashlib.sha256(parent + tokens.tobytes()).digest())

    def _root_of(self, seq: Sequence) -> bytes:
        return hashlib.sha256(self._root + seq.request.cache_salt.encode()).digest()
