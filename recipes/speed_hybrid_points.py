"""Point-mass and driving tasks with hybrid actions stepped one environment at a time, to measure the batched against.

It is written the way such programs are: one object's numbers, an observation as a NumPy array per step, a
random action, a reset at an episode's end. Catch Point and Hard Move hold positions as NumPy arrays, as the particle
world they come from; Moving holds plain numbers, as gym-hybrid does. ``plain=True`` leaves NumPy out of the first two.
"""

from __future__ import annotations

import math
import random

import numpy as np


class _Point:
    """Position, velocity and landmark as arrays of NumPy, or as lists of plain numbers."""

    def __init__(self, seed: int, plain: bool):
        self.random, self.plain = random.Random(seed), plain
        self.reset()

    def reset(self) -> None:
        x, y, a, b = (self.random.uniform(-1, 1) for _ in range(4))
        self.numbers = [x, y, 0.0, 0.0, a, b]
        self.position, self.velocity, self.landmark = np.array([x, y]), np.zeros(2), np.array([a, b])
        self.misses = self.age = 0

    def push(self, fx: float, fy: float) -> float:
        """Move and return the squared distance; the observation is made as well."""
        self.age += 1
        if self.plain:
            x, y, u, v, a, b = self.numbers
            u, v = 0.75 * u + 0.1 * fx, 0.75 * v + 0.1 * fy
            x, y = x + 0.1 * u, y + 0.1 * v
            self.numbers, self.seen = [x, y, u, v, a, b], (u, v, a - x, b - y)
            return (a - x)**2 + (b - y)**2
        self.velocity = self.velocity * (1 - 0.25) + np.array([fx, fy]) / 1.0 * 0.1
        self.position = self.position + self.velocity * 0.1
        away = self.landmark - self.position
        self.seen = np.concatenate([self.velocity, away])
        return float(np.sum(np.square(away)))


def catch_point_steps(steps: int, seed: int, plain: bool = False) -> int:
    """Steps of Catch Point with random actions; how many were done."""
    body = _Point(seed, plain)
    for _ in range(steps):
        catching, angle = body.random.random() < 0.5, math.pi * body.random.uniform(-1, 1)
        square = body.push(0.0, 0.0) if catching else body.push(2 * math.sin(angle), 2 * math.cos(angle))
        reward = -square
        if body.misses > 10:
            reward = 0.0
        elif catching and square <= 0.04:
            reward += 20
        elif catching:
            body.misses += 1
        if reward > 4 or reward == 0 or body.age >= 25:
            body.reset()
    return steps


def hard_move_steps(steps: int, seed: int, n: int = 4, plain: bool = False) -> int:
    """Steps of Hard Move with n actuators and random actions; how many were done."""
    directions = [(round(math.cos(2 * math.pi * i / n), 3), round(math.sin(2 * math.pi * i / n), 3)) for i in range(n)]
    sums = [[sum(directions[i][axis] for i in range(n) if k >> (n - 1 - i) & 1) for axis in (0, 1)]
            for k in range(2**n)]
    longest = max(math.hypot(*motion) for motion in sums)
    body = _Point(seed, plain)
    for _ in range(steps):
        (x, y), strength = sums[body.random.randrange(2**n)], 2 * body.random.uniform(-1, 1) / longest
        square = body.push(strength * x, strength * y)
        reward = -square + (20 if square <= 0.04 else 0)
        if reward > 4 or body.age >= 30:
            body.reset()
    return steps


def moving_steps(steps: int, seed: int) -> int:
    """Steps of Moving with random actions; how many were done."""
    chance, age = random.Random(seed), None
    for _ in range(steps):
        if age is None:
            tx, ty, x, y = (size * chance.uniform(-1, 1) for size in (0.9, 0.9, 1, 1))
            angle, speed, age = chance.uniform(0, 2 * math.pi), 0.0, 0
        before, choice, param = math.hypot(tx - x, ty - y), chance.randrange(3), chance.uniform(-1, 1)
        age += 1
        if choice == 0:
            speed += 0.5 * min(max((param + 1) / 2, 0.0), 1.0)
        elif choice == 1:
            angle = (angle + math.pi / 2 * min(max(param, -1.0), 1.0)) % (2 * math.pi)
        else:
            speed = 0.0 if speed < 0.1 else speed - 0.1
        x, y = x + 0.005 * speed * math.cos(angle), y + 0.005 * speed * math.sin(angle)
        away = math.hypot(tx - x, ty - y)
        reward = before - away - 0.001
        np.array([x, y, speed, math.cos(angle), math.sin(angle), tx, ty, away, away <= 0.1, age / 200])
        if away < 0.1 and speed == 0:
            reward, age = reward + 1, None
        elif abs(x) > 1 or abs(y) > 1 or age > 200:
            reward, age = -1.0, None
    return steps
