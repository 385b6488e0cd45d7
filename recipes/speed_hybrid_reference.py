"""Platform and Goal stepped one environment at a time with NumPy, to measure the batched ones against.

Written after the same rules as `envs.hybrid.platform_rules` and `envs.hybrid.goal_rules`, in the usual way: vectors are
arrays of two numbers. Actions are random, episodes begin anew where they end.
"""

from __future__ import annotations

from math import atan2, pi

import numpy as np

PLATFORMS = ((0.0, 250.0), (475.0, 275.0), (985.0, 50.0))
SIZES, NOISES, LIMITS, DECAYS = (0.9, 0.9, 0.4), (0.1, 0.1, 0.05), (1.0, 1.0, 2.7), (0.4, 0.4, 0.94)
RATES, STILL = (0.006, 0.006, 0.027), 1 - 0.94


def platform_episode_steps(steps: int, seed: int) -> int:
    """Play ``steps`` macro steps of Platform with random actions; the number of them."""
    rng = np.random.RandomState(seed)
    state = None
    for _ in range(steps):
        if state is None:
            state = np.array([0.0, 40.0]), np.zeros(2), np.array([230.0, 730.0]), np.array([-30.0, -30.0])
        choice = rng.randint(3)
        state = _platform_step(*state, choice, rng.uniform(0, (30, 720, 430)[choice]), rng)
    return steps


def _stands(place: np.ndarray) -> bool:
    return place[1] == 40 and any(left - 20 <= place[0] <= left + width for left, width in PLATFORMS)


def _platform_step(place, speed, enemies, enemy_speed, choice, parameter, rng):
    for k in range(150):
        stands = _stands(place)
        push = np.array([parameter / 0.05, 0.0])
        if choice and stands:
            up = (0, 35, 25)[choice]
            ahead = np.clip(parameter / (2 * up / 9.8 + 1) - speed[0], -600, 200 - up)
            push = np.array([ahead - abs(rng.normal()), up - abs(rng.normal())]) / 0.05
        elif not stands:
            push = np.array([0.0, -9.8])
        speed = speed + np.clip(push, [-600, -4000], [600, 4000]) * 0.05
        speed[0] -= abs(0.025 * rng.normal())
        speed = np.clip(speed, [0, -200], [70 if stands else 100, 200])
        at = int(place[0] > 475)
        place = place + speed * 0.05
        place[0] = np.clip(place[0], 0, 1035)
        speed[0] *= 0.99
        left, right = PLATFORMS[at][0], sum(PLATFORMS[at]) - 20
        if not left < enemies[at] < right:
            enemy_speed[at] = -enemy_speed[at]
        enemy_speed[at] = np.clip(enemy_speed[at] + 0.025 * rng.normal(), -30, 30)
        enemies[at] = np.clip(enemies[at] + enemy_speed[at] * 0.05, left, right)
        for left, width in PLATFORMS:
            if place[1] < 40 and left - 20 < place[0] < left + width:
                beside = left - 20 if place[0] < left else left + width if place[0] > left + width - 20 else place[0]
                aside = beside != place[0] and abs(place[0] - beside) < abs(40 - place[1])
                place, speed = ((np.array([beside, place[1]]), np.array([0.0, speed[1]])) if aside else
                                (np.array([place[0], 40.0]), np.zeros(2)))
        if place[1] < 40 or place[0] >= 1035 or (place[1] < 70 and (np.abs(place[0] - enemies) < 20).any()):
            return None
        if (k == 19) if choice == 0 else _stands(place):
            return place, speed, enemies, enemy_speed
    return None


def goal_episode_steps(steps: int, seed: int) -> int:
    """Play ``steps`` macro steps of Goal with random actions; the number of them."""
    rng = np.random.RandomState(seed)
    state = None
    for _ in range(steps):
        if state is None:
            state = _goal_start(rng)
        choice = rng.randint(3)
        target = np.full(2, rng.uniform(0, 40)) if choice == 0 else np.array([20.4, rng.uniform(-7.01, 7.01)])
        state = _goal_step(*state, choice, target, rng)
    return steps


def _goal_start(rng):
    player = np.array([0.0, rng.uniform(-15, 15)])
    facing = atan2(-player[1], 20)
    ball = player + (1.6 - 1e-12) * np.array([np.cos(facing), np.sin(facing)])
    slope = -ball[1] / (20 - ball[0])
    keeper = np.array([14.5, np.clip(slope * 14.5 + ball[1] - slope * ball[0], -9.16, 9.16)])
    return [player, keeper, ball], [np.zeros(2)] * 3, facing


def _wrap(angle: float) -> float:
    return angle - 2 * pi * round(angle / (2 * pi))


def _push(speed, power, angle, body, rng):
    angle, blur = (1 + NOISES[body] * rng.uniform(-1, 1)) * angle, NOISES[body] * np.linalg.norm(speed)
    push = power * RATES[body] * np.array([np.cos(angle), np.sin(angle)]) + blur * rng.uniform(-1, 1, 2)
    most = LIMITS[body]
    return np.clip(speed + np.clip(push, -most, most), -most, most)


def _goal_step(places, speeds, facing, choice, target, rng):
    for _ in range(1000):
        (player, keeper, ball), ahead = places, places[2] - places[0]
        turn, distance = _wrap(atan2(ahead[1], ahead[0]) - facing), np.linalg.norm(ahead)
        if distance <= 1.6:
            wanted = STILL * (target - player) - speeds[2]
            ease = 1 - 0.25 * abs(turn) / pi - 0.25 * distance / 1.6
            power = min(np.linalg.norm(wanted) / (ease * RATES[2]), 100) * ease
            speeds[2] = _push(speeds[2], power, atan2(wanted[1], wanted[0]), 2, rng)
        elif abs(turn) < pi / 8:
            speeds[0] = _push(speeds[0], 10, facing, 0, rng)
        else:
            facing += turn / (1 + 5 * np.linalg.norm(speeds[0]))
        end, power = ball + speeds[2] / STILL, 8
        way = end - ball
        slope = way[1] / way[0] if way[0] else 0.0
        offset = ball[1] - slope * ball[0]
        if end[0] > 20 and abs(20 * slope + offset) <= 9.01 and slope:
            foot = (keeper[1] + keeper[0] / slope - offset) / (slope + 1 / slope)
            end, power = np.array([foot, slope * foot + offset]), 20
        speeds[1] = _push(speeds[1], power, atan2(*(end - keeper)[::-1]), 1, rng)
        places = [place + speed for place, speed in zip(places, speeds, strict=True)]
        speeds = [speed * decay for speed, decay in zip(speeds, DECAYS, strict=True)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            distance = np.linalg.norm(places[b] - places[a])
            if distance < SIZES[a] + SIZES[b]:
                shift = (places[b] - places[a]) * ((SIZES[a] + SIZES[b] - distance) / (2 * distance))
                places[a], places[b] = places[a] - shift, places[b] + shift
                speeds[a], speeds[b] = -speeds[a], -speeds[b]
        player, keeper, ball = places
        if np.linalg.norm(keeper - ball) < 2 or not 0 <= ball[0] <= 20 or abs(ball[1]) > 15:
            return None
        if choice == 0 and np.linalg.norm(speeds[2]) <= 0.1 and np.linalg.norm(player - ball) <= 1.6:
            return places, speeds, facing
    return None
