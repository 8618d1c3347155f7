"""Alarms: conditions with memory, and who is told.

schedule    the hours in which an alarm can be raised
conditions  an alarm's SQL and rules, compiled against its stream
machine     the pure state machine of one key
keys, rows  numbers of keys, and what is remembered of every key that sends
tracker     what one alarm remembers, and which rows of a batch can change it
history     what alarms leave in the database
recovery    a tracker in the database, between two starts
service     reads the log, commits transitions with the offsets
listing     alarms as the API shows them
operators   what people do with alarms; muting, labels: shelves and silences
announce    who is told of transitions; routing, escalation: by which steps
outbox      messages of one transaction
targets     where notifications go; templates: their texts
notify      brings what was committed to its targets
letters     notifications as the API shows them
"""
