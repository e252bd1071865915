"""One stage a file: a thin Prefect task around one library call."""

from tasks.log import set_up

set_up()
