"""How many of the personal numbers and addresses in made lines `karpa_tf.privacy` finds.

2,000 lines in English, German and Chinese, made by a seed. Two in three hold an e-mail address, an IBAN, a
card's or a phone's number in one of the forms in which people write them. The others hold a number that is
none: of an order, a date, an amount, an ISBN, a version, a time stamp, an IBAN or a card's number with a
wrong digit. Those are drawn freely: an order number may happen to have a card's check digit.

    python benchmarks/privacy.py [--lines 2000] [--seed 0]

A find counts if it begins and ends where it should. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from typing import Any

from karpa_tf.privacy import Span, spans

KINDS = ("email", "iban", "card", "phone")
# A line is a piece of text with one place for what is drawn. {p}: personal, {n}: none of it.
LINES = {
    "en": {
        "email": ["write to {} please", "my address is {}.", "<{}> asked again", "{}, that is me", "mail:{}"],
        "iban": ["please pay to {} today", "IBAN {}", "the account {}, as always", "refund goes to {}."],
        "card": [
            "my card {} was refused",
            "card number: {}, valid 12/29",
            "charged {} twice",
            "{} is expired",
        ],
        "phone": [
            "call me at {} tomorrow",
            "phone: {}",
            "my number is {}.",
            "fax ({}) still works",
            "{} is mine",
        ],
        "none": ["it was {} as I said", "see {}, please", "order {} has not come", "({})", "about {}."],
    },
    "de": {
        "email": [
            "schreib an {} bitte",
            "Meine Adresse ist {}.",
            "({}) fragt noch einmal",
            "E-Mail: {}, danke",
        ],
        "iban": ["bitte auf {} überweisen", "IBAN {}", "das Konto {}, wie immer", "Erstattung an {}."],
        "card": ["meine Karte {} geht nicht", "Kartennummer: {}, gültig bis 12/29", "{} wurde belastet"],
        "phone": [
            "ruf mich unter {} an",
            "Telefon: {}",
            "meine Nummer ist {}.",
            "Fax ({}) geht noch",
            "{} bitte",
        ],
        "none": ["es war {} wie gesagt", "siehe {}, bitte", "Bestellung {} fehlt", "({})", "wegen {}."],
    },
    "zh": {
        "email": ["请发邮件到{}谢谢", "我的邮箱是{}。", "邮箱:{},请回复", "({})又来问了"],
        "iban": ["请转账到{}谢谢", "账户{}。", "IBAN:{},请查收", "退款到{}吧"],
        "card": ["我的卡{}被拒了", "卡号:{},有效期12/29", "从{}扣了两次", "卡{}。"],
        "phone": ["请打{}联系我", "电话:{}", "我的手机号是{}。", "传真({})还能用", "明天给{}回电"],
        "none": ["是{}没错", "请看{}谢谢", "订单号{}还没到", "({})", "关于{}。"],
    },
}
NAMES = {
    "en": ["ada", "j.smith", "o'brien"],
    "de": ["jörg", "anna-lena.groß", "mueller_k"],
    "zh": ["wang", "li88"],
}
HOSTS = ["example.com", "mail.example.co.uk", "uni-köln.de", "qq.com", "post.example.org", "a.io"]
# Of some countries: the letters and digits behind the check digits. A: a letter, #: a digit.
IBANS = {
    "DE": "#" * 18,
    "GB": "AAAA" + "#" * 14,
    "FR": "#" * 23,
    "NL": "AAAA" + "#" * 10,
    "AT": "#" * 16,
    "CH": "#" * 17,
    "ES": "#" * 20,
    "IT": "A" + "#" * 22,
    "NO": "#" * 11,
    "MT": "AAAA" + "#" * 23,
}
# Issuers' first digits, and lengths.
CARDS = [("4", 16), ("4", 13), ("51", 16), ("55", 16), ("2221", 16), ("34", 15), ("37", 15), ("36", 14)]
CARDS += [("6011", 16), ("62", 16), ("62", 19), ("3530", 16)]
WIDE = str.maketrans("0123456789", "０１２３４５６７８９")


def digits(rng: random.Random, count: int, first: str = "0123456789") -> str:
    """So many digits, the first one of some."""
    return rng.choice(first) + "".join(rng.choices("0123456789", k=count - 1))


def filled(rng: random.Random, form: str) -> str:
    """A form with a digit for each #, one above 1 for each N, and a capital letter for each A."""
    drawn = {"#": "0123456789", "N": "23456789", "A": "ABCDEFGHKLMNPRSTWZ"}
    return "".join(rng.choice(drawn.get(char, char)) for char in form)


def email(rng: random.Random, language: str) -> str:
    local = rng.choice(NAMES[language]) + rng.choice(["", "+news", f".{digits(rng, 2)}", "%x"])
    address = f"{local}@{rng.choice(HOSTS)}"
    return rng.choice([address, address, address.upper(), address.replace("@", "＠")])


def check_iban(country: str, account: str) -> str:
    """An IBAN: with the check digits that make it 1 modulo 97 (ISO 7064)."""
    number = "".join(str(ord(char) - 55) if char.isalpha() else char for char in f"{account}{country}00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def iban(rng: random.Random, language: str) -> str:
    country = rng.choice([*IBANS, "DE", "GB"])
    plain = check_iban(country, filled(rng, IBANS[country]))
    grouped = " ".join(plain[i : i + 4] for i in range(0, len(plain), 4))
    return rng.choice([plain, grouped, grouped, plain.lower(), grouped.replace(" ", "\N{NO-BREAK SPACE}")])


def check_card(body: str) -> str:
    """A card's number: with the last digit that makes its sum 0 modulo 10 (Luhn)."""
    total = 0
    for place, char in enumerate(reversed(body)):
        total += sum(divmod(int(char) * (2 - place % 2), 10))
    return body + str(-total % 10)


def in_groups(number: str, between: str) -> str:
    """A card's number as it is printed."""
    sizes = [4, 6, 5] if len(number) in (14, 15) else [4, 3, 3, 3] if len(number) == 13 else [4, 4, 4, 4, 3]
    parts, place = [], 0
    for size in sizes:
        parts.append(number[place : place + size])
        place += size
    return between.join(filter(None, parts))


def card(rng: random.Random, language: str) -> str:
    first, length = rng.choice(CARDS)
    number = check_card(first + digits(rng, length - 1 - len(first)))
    if language == "zh" and rng.random() < 0.2:
        return number.translate(WIDE)
    return rng.choice([number, in_groups(number, " "), in_groups(number, " "), in_groups(number, "-")])


PHONES = {
    "en": (
        "(N##) N##-####|N##-N##-####|+1 N## N## ####|N##.N##.####|+44 20 N### ####|020 N### ####"
        "|+1 (N##) N##-####|07N## ######|1-800-N##-####"
    ),
    "de": (
        "030 / N######|0171-N######|+49 171 N######|0049 30 N#######|(089) N#####|+49 (0)30 N## ###"
        "|0171N######|0221 N# ## ##|+49/30/N######"
    ),
    "zh": (
        "13#########|158 #### ####|139-####-####|010-N#######|+86 139 #### ####|0755-N#######"
        "|(021) N#######|N###-####"
    ),
}


def phone(rng: random.Random, language: str) -> str:
    number = filled(rng, rng.choice(PHONES[language].split("|")))
    return number.translate(WIDE) if language == "zh" and rng.random() < 0.1 else number


def wrong(rng: random.Random, number: str) -> str:
    """A number with another digit in the place of its last one, so that the check fails."""
    last = max(place for place, char in enumerate(number) if char.isdecimal())
    other = rng.choice([str(digit) for digit in range(10) if str(digit) != str(int(number[last]))])
    return number[:last] + other + number[last + 1 :]


def none(rng: random.Random, language: str) -> str:
    """A number, or what looks like an address, that is nobody's."""
    isbn = filled(rng, "978-#-##-######-#")
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1950, 2030)
    return rng.choice(
        [
            digits(rng, rng.randint(4, 18), "123456789"),  # an order
            f"{rng.choice('ABC')}{digits(rng, 7)}",
            f"{year}-{digits(rng, 6)}",
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year} {rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}",
            f"{month}/{day}/{year}",
            f"{rng.randint(1, 999)},{digits(rng, 3)},{digits(rng, 3)}.{digits(rng, 2)}",
            f"{rng.randint(1, 999)}.{digits(rng, 3)},{digits(rng, 2)} €",
            f"{rng.randint(0, 9)}.{rng.randint(0, 30)}.{rng.randint(0, 9)}",
            ".".join(str(rng.randint(1, 255)) for _ in range(4)),
            f"{rng.uniform(0, 1):.10f}",
            str(rng.randint(1_500_000_000, 1_800_000_000)),  # seconds since 1970
            isbn,
            f"ISBN {filled(rng, 'N-###-#####-#')}",
            wrong(rng, card(rng, language)),
            wrong(rng, iban(rng, language)),
            f"@{rng.choice(NAMES['en'])}",
            f"{rng.choice(NAMES['en'])}@localhost",
            f"{rng.randint(1, 20)}x{rng.randint(1, 20)}",
        ]
    )


MAKERS = {"email": email, "iban": iban, "card": card, "phone": phone, "none": none}


def make_lines(count: int = 2000, seed: int = 0) -> list[tuple[str, str, list[Span]]]:
    """Language, text and what should be found, of so many lines."""
    rng = random.Random(seed)
    lines = []
    for _ in range(count):
        language = rng.choice([*LINES])
        kind = rng.choice([*KINDS, "none", "none"])
        before, after = rng.choice(LINES[language][kind]).split("{}")
        drawn = MAKERS[kind](rng, language)
        found = [] if kind == "none" else [Span(len(before), len(before) + len(drawn), kind)]
        lines.append((language, before + drawn + after, found))
    return lines


def score(lines: list[tuple[str, str, list[Span]]]) -> dict[str, dict[str, Any]]:
    """Counts, precision, recall and F1 by kind, by exact spans."""
    right, said, true = Counter[str](), Counter[str](), Counter[str]()
    for _, text, expected in lines:
        found = spans(text)
        true.update(span.kind for span in expected)
        said.update(span.kind for span in found)
        right.update(span.kind for span in found if span in expected)
    return {
        kind: {
            "there": true[kind],
            "found": said[kind],
            "precision": right[kind] / max(said[kind], 1),
            "recall": right[kind] / max(true[kind], 1),
            "f1": 2 * right[kind] / max(said[kind] + true[kind], 1),
        }
        for kind in KINDS
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--errors", action="store_true", help="Print the lines of which something else was found."
    )
    parser.add_argument("--smoke", action="store_true", help="A tenth of the lines.")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.lines //= 10
    lines = make_lines(arguments.lines, arguments.seed)
    if arguments.errors:
        for language, text, expected in lines:
            if (found := spans(text)) != expected:
                print(language, repr(text), [(span.kind, text[span.begin : span.end]) for span in found])
    figures = score(lines)
    print(f"{'kind':<8}{'there':>8}{'found':>8}{'precision':>11}{'recall':>9}{'F1':>9}")
    for kind, row in figures.items():
        numbers = f"{row['precision']:>11.4f}{row['recall']:>9.4f}{row['f1']:>9.4f}"
        print(f"{kind:<8}{row['there']:>8}{row['found']:>8}{numbers}")
    print(json.dumps({"benchmark": "privacy", "values": figures}))


if __name__ == "__main__":
    main()
