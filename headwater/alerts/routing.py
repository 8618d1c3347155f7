"""Who is told of an alarm and when: its own targets at once, and the steps of the routes that its labels match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headwater.alerts.labels import Matcher, match, parsed
from headwater.errors import ConfigError, RecordError
from headwater.notify_settings import RouteSettings

#: (so long after firing, targets), the earliest first; each later than the one before.
Plan = list[tuple[int, list[str]]]


class Router:
    """The `[[routes]]` of the configuration, in their order.

    raises: ConfigError that names the route
    """

    def __init__(self, routes: Sequence[RouteSettings] = ()) -> None:
        self._routes: list[tuple[tuple[Matcher, ...], RouteSettings]] = []
        for at, route in enumerate(routes):
            try:
                matchers = parsed(route.match) if route.match else ()
            except RecordError as error:
                raise ConfigError(f"routes[{at}].match: {error}") from error
            self._routes.append((matchers, route))

    def __bool__(self) -> bool:
        return bool(self._routes)

    def plan(self, labels: Mapping[str, str], targets: Sequence[str]) -> Plan:
        """targets: those that the alarm names itself, told at once. A target is told once, at its earliest step."""
        steps: dict[int, list[str]] = {0: list(targets)} if targets else {}
        for matchers, route in self._routes:
            if match(matchers, labels):
                for step in route.steps:
                    steps.setdefault(step.after, []).extend(step.to)
                if not route.continue_:
                    break
        told: set[str] = set()
        plan: Plan = []
        for after_us in sorted(steps):
            fresh = [target for target in dict.fromkeys(steps[after_us]) if target not in told]
            told.update(fresh)
            if fresh:
                plan.append((after_us, fresh))
        return plan
