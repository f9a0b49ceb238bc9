"""Texts that are hard to cut into tokens and put together again."""

from __future__ import annotations

from hypothesis import strategies as st

# The embedded vocabulary has no token for these control characters, nor for bytes that begin characters past plane 3:
# they are lost in encoding, as they are with transformers.
unicode_text = st.text(
    st.characters(codec="utf-8", max_codepoint=0x3FFFF, exclude_characters="\x04\x06\x13\x14\x16\x1d"), max_size=40
)

TEXTS = [
    "The future of AI is",
    "family 👨‍👩‍👧‍👦 flag 🇩🇪 thumbs 👍🏽",
    "e\u0301a\u0300\u0323 Z͑ͫ̓͛a̴ ñ",
    "नमस्ते 你好 안녕 שלום",
    "\u200d\ufeff\u2028 tabs\t\tand\r\nlines\n\n\n",
    "math 𝕊𝟛 ∑ ½ ² ligature ﬁ",
    "<|im_start|>user\nhi<|im_end|>",
    "a � replacement character that was really there �",
]
