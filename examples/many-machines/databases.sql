-- MLflow's own: it and Optuna both keep a table `alembic_version`, so they must not share a database.
CREATE DATABASE mlflow;
