"""Work that is cut off at a chosen call."""


def at_call(number, function):
    """The list of `function`'s calls, and `function`, which raises KeyboardInterrupt at its call `number`."""
    calls = []

    def counted(*arguments, **named):
        calls.append(arguments)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return calls, counted
