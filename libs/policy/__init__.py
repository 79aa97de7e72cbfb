"""The rules that an operator writes, as messages: which kinds there are, what each must obey, what names what.

Admission checks with it what comes over the wire, the console what comes as files. No effects.
"""
