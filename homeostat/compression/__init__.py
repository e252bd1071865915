"""Smaller forms of a model, each measured as the exported graph, and the choice by a budget."""
