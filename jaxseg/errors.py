"""The one exception that stands for a mistake of the user's."""


class UserError(Exception):
    """A bad input: the message names the file or value, what was expected and how to mend it.

    `jaxseg.main` prints the message without a traceback and exits with status 2. Raise anything
    else for a defect of jaxseg's own.
    """
