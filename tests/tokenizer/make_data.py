"""Makes data/*.json: small byte-level tokenizers and what Hugging Face's tokenizers make of some texts with them.

Run by hand, with tokenizers 0.22 or later from PyPI:  python3 tests/tokenizer/make_data.py
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

DATA = pathlib.Path(__file__).parent / "data"

# How the tokenizers of current large models cut words: contractions, words with the character before them, numbers of up
# to three digits, the rest, line ends, blanks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The other one in wide use: letters by case and marks, contractions at the end of a word, possessive repeats.
CASED_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = [
    "",
    "a",
    "#include <vector>\n\nint main() { return 0; }\n",
    "for (int i = 0; i < 1234567; ++i)\t\tsum += x[i];\r\n\r\n    // done   \n",
    "It's what they'll say: I'M HERE, you'd think; we've SEEN he'S HTTPServer's",
    "naïve café, e\u0301 combining, Ærøskøbing, Straße, ſt, İstanbul",
    "快速的棕色狐狸跳过了懒狗。日本語のテキスト、한국어 문장",
    "שלום عالم ١٢٣٤ ๑๒๓ ½ Ⅻ ²",
    "emoji 👩‍👩‍👧 🇩🇪 ✨ and \U0001f9ff\U000e0001 end",
    "   leading, trailing   ",
    "\u00a0no-break\u2003em\u3000wide\u200bzero\u0085next\u2028line",
    "tabs\t\tand\n\n\n\nlines\r\r\n \n",
    "the the the theme then there",
    "<s>user</s><s>assistant<tool> not <too l></s>",
    "<tool><tool_call> nested<<tool>>",
    "e\u0301te\u0301 \u00e9t\u00e9, e\u0301< \u00e9<, \ufb01 \u00bd \u1e9b\u0323 \u1100\u1161\u11a8",
    "null\u0000byte and \u0001\u001f control",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "\ufeffbom \ufffd replaced",
]

TRAINING = [text for text in TEXTS for _ in range(3)] + ["the quick brown fox jumps over the lazy dog " * 3]


def trained(pre_tokenizer, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=460,
        min_frequency=2,
        show_progress=False,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return tokenizer


def split(regex):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(regex), "isolated"), byte_level])


def make_words():
    tokenizer = trained(split(WORDS), ignore_merges=True)
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("<tool_call>")])
    ids = {name: tokenizer.token_to_id(name) for name in ("<s>", "</s>")}
    template = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=list(ids.items()))
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def make_plain():
    return trained(pre_tokenizers.ByteLevel(add_prefix_space=False))


def make_composed():
    tokenizer = trained(split(WORDS))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.NFD(), normalizers.NFC()])
    tokenizer.add_tokens([AddedToken("e\u0301t\u00e9", normalized=True), AddedToken("e\u0301<", normalized=False)])
    return tokenizer


def write(name, tokenizer):
    tokenizer.save(str(DATA / f"{name}.json"), pretty=False)
    cases = []
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        cases.append({"text": text, "ids": ids, "prompt_ids": tokenizer.encode(text).ids})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (DATA / f"{name}.cases.json").write_text(f"[\n{lines}\n]\n")


write("words", make_words())
write("cased_words", trained(split(CASED_WORDS)))
write("plain", make_plain())
write("composed", make_composed())
