"""What `homeostat init` writes: string.Template files with $name and $class_name."""
