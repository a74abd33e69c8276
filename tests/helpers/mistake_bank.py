"""A bank of wrong solutions, and of right ones that are not the course's:
what tests/course/test_grade.py feeds to the graders.

bank = Bank()

@bank.mistake("what is wrong", "words that the grader's message must hold")
def name_of_the_exercise(...): ...
"""


class Bank:
    def __init__(self):
        self.MISTAKES = []  # (exercise, what, says, function)
        self.OTHER_WAYS = []  # (exercise, what, function)

    def mistake(self, what: str, says: str):
        return lambda function: self.MISTAKES.append((function.__name__, what, says, function))

    def another_way(self, what: str):
        return lambda function: self.OTHER_WAYS.append((function.__name__, what, function))


def per_image(values):
    """(B,) -> (B, 1, 1, 1)"""
    return values.view(-1, 1, 1, 1)
