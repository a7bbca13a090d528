"""Is a response right, and which answer does it give?"""

from srlm.answers.classes import AnswerClass, answer_classes
from srlm.answers.rules import Match, auto, contains, match_rule
from srlm.answers.text import normalise

__all__ = ["AnswerClass", "Match", "answer_classes", "auto", "contains", "match_rule", "normalise"]
