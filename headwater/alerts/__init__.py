"""Alarms: conditions with memory, and who is told.

conditions  an alarm's SQL, compiled against its stream
machine     the pure state machine of one key
tracker     the instances of one alarm, and which rows of a batch can change them
history     alarms in the database and for the API
service     reads the log, commits transitions with the offsets
notify      brings what was committed to its targets
"""
