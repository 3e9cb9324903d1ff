"""Prints the samples that Prometheus' own parser finds in the text on standard input, as JSON.

usage: read_prometheus.py < TEXT        [[name, {label: value, ...}, value], ...]
"""
import json
import sys

from prometheus_client.parser import text_string_to_metric_families

families = text_string_to_metric_families(sys.stdin.read())
json.dump([[sample.name, sample.labels, sample.value] for family in families for sample in family.samples], sys.stdout)
