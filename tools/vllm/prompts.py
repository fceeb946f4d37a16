"""What the trial asks: prompts as token ids, the same in every run, made from a text of our own.

The set whose answers are compared goes round five kinds: short ones, long ones, some that share
640 tokens at their beginning, and pairs of turns, where the second continues the first with its
answer. The prompts that are timed are all of one length and begin differently.
"""
import random
from dataclasses import dataclass, field

KINDS = ("short", "long", "shared", "turn", "reply")
SHARED_TOKENS = 640
BLOCK_TOKENS = 128
PEOPLE = ("the harbour pilot", "a retired baker", "our neighbour", "the youngest clerk",
          "a travelling tuner of pianos", "the night porter", "Miss Adeyemi", "old Varga")
DEEDS = ("repaired the weather vane", "counted the lanterns", "wrote a letter to the mayor",
         "planted forty beech trees", "lost a game of draughts", "found a map behind the stove",
         "measured the tide twice", "sold a barrel of cider", "taught the parrot a proverb")
WHEN = ("On the first frost", "Before the ferry came", "In the year of the flood", "At noon",
        "While the bells were being recast", "Two days after the fair", "Late one evening")


@dataclass
class Prompt:
    """follows: the name of the turn before, whose tokens and answer come first; own: this one's
    tokens. complete() makes tokens of both."""
    name: str
    own: list
    follows: str = ""
    tokens: list = field(default_factory=list)

    def complete(self, earlier):
        """earlier: {name: (Prompt, token ids of its answer)} of those that were asked already."""
        if not self.tokens:
            before = []
            if self.follows:
                prompt, answer = earlier[self.follows]
                before = prompt.tokens + answer
            self.tokens = before + self.own


def story(seed, sentences):
    chance = random.Random(seed)
    return " ".join(
        f"{chance.choice(WHEN)} {chance.choice(PEOPLE)} {chance.choice(DEEDS)}, which took "
        f"{chance.randint(2, 900)} minutes and {chance.randint(2, 40)} helpers."
        for _ in range(sentences))


class PromptMaker:
    """tokenize: a function from text to token ids."""

    def __init__(self, tokenize):
        self.tokenize = tokenize

    def passage(self, seed, count, opening=""):
        """count tokens of a story that no other seed begins like."""
        text = f"{opening}Chronicle {seed}. "
        sentences = count // 12 + 4
        while True:
            tokens = self.tokenize(text + story(seed, sentences))
            if len(tokens) >= count:
                return tokens[:count]
            sentences *= 2

    def timed(self, group, index, count):
        """One to be timed: count tokens, different from the first block on for every group and
        index."""
        return self.passage(f"{group}-{index}", count)

    def compared(self, count):
        """The set whose answers are compared, in the order in which it is asked."""
        common = self.passage("house rules", SHARED_TOKENS)
        made = []
        for i in range(count):
            kind, turn = KINDS[i % len(KINDS)], i // len(KINDS)
            name = f"{kind}-{turn}"
            if kind == "short":
                prompt = Prompt(name, self.passage(name, 60 + 90 * (turn % 6)))
            elif kind == "long":
                prompt = Prompt(name, self.passage(name, 1100 + 230 * (turn % 9)))
            elif kind == "shared":
                prompt = Prompt(name, common + self.passage(name, 40 + 35 * (turn % 8)))
            elif kind == "turn":
                # The answer fills this prompt's last block: generated tokens are in a block that
                # the reply finds.
                prompt = Prompt(name, self.passage(name, BLOCK_TOKENS * (2 + turn % 4) - 8))
            else:
                prompt = Prompt(name, self.passage(name, 150 + 20 * (turn % 5)), f"turn-{turn}")
            made.append(prompt)
        return made
