"""The example environment of agentenv/1: a till to be filled with coins, through tools, to an exact sum.

The state lies in the session, the goal in the task; the grade reads both and no words. Level L asks for a sum of L coins.
"""
import random

import agentenv

COINS = (1, 2, 5, 10, 20, 50)


class Till(agentenv.Environment):
    name, version, levels = "till", 1, (1, 5)

    def make(self, seed, level, split):
        draw = random.Random(f"{split} {level} {seed}")
        # Sums that leave 0 by four are held out, so the splits share none.
        while True:
            goal = sum(draw.choice(COINS) for _ in range(level))
            if (goal % 4 == 0) == (split == "held_out"):
                break
        tools = [
            agentenv.tool("insert", "Puts one coin into the till.", coin=("integer", "its value: 1, 2, 5, 10, 20 or 50")),
            agentenv.tool("close", "Closes the till. That hands it in."),
        ]
        question = f"Put coins worth exactly {goal} into the till, at most {level} of them, and close it."
        return agentenv.Task(question, sealed=(goal, level), system="You work at a till.", tools=tools)

    def open(self, task):
        return TillSession(*task.sealed)


class TillSession(agentenv.Session):
    def __init__(self, goal, max_coins):
        self.goal, self.max_coins, self.coins, self.is_closed = goal, max_coins, [], False

    def call(self, name, arguments):
        if name == "close":
            self.is_closed = True
            return agentenv.Final("The till is closed.")
        if arguments["coin"] not in COINS:
            raise agentenv.ToolError(f"there is no coin of {arguments['coin']}.")
        self.coins.append(arguments["coin"])
        return f"The till holds {sum(self.coins)}."

    def grade(self, trajectory):
        clauses = {
            "sum": sum(self.coins) == self.goal,
            "few coins": len(self.coins) <= self.max_coins,
            "closed": self.is_closed,
        }
        return {"reward": float(all(clauses.values())), "parts": {name: float(met) for name, met in clauses.items()}}


if __name__ == "__main__":
    agentenv.main(Till())
